"""How close predicted video is to the truth: MSE, PSNR, SSIM, LPIPS and FVD, and the networks that the last two need."""
