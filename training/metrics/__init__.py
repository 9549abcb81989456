"""Compares predicted video with the truth: PSNR, SSIM, LPIPS and FVD, and the networks of the last two."""
