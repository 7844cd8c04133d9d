"""What a backbone is worth: protocols that are written down, hashed and printed with every figure."""
