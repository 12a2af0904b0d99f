"""From clips and captions to host batches; NumPy only, no JAX import in data workers."""
