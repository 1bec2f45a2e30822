"""Operations written by hand: each file has a Triton kernel and its plain PyTorch twin."""
