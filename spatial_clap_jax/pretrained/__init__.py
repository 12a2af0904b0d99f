"""Published weights as our pytrees, and back: one file a source, every tensor accounted for."""
