"""`--verify_resume`: proves that a killed run resumes bit for bit."""
