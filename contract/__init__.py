"""What training and serving share: schema, tokens, vocabulary, encoding, bundle format, and golden requests."""
