"""One file a system: features, encoders, loss and embeddings on one screen."""
