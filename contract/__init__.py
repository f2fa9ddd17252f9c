"""What training and serving must agree on: schema, tokens, vocabulary, encoding, bundle, golden requests."""
