"""How good the tokens of a tokenizer are."""
