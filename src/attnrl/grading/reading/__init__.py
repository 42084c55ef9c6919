"""Reading of answers: text to tokens to typed values."""
