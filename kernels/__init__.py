"""Operations worth writing by hand: one a file, a Triton kernel beside its plain PyTorch twin."""
