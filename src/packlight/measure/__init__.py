"""What a compressed model is worth, measured on the very file that is handed over."""
