"""Stage kernel: K_nm of all samples and landmarks, features and landmarks -> kernel."""
