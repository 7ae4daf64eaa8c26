"""ContMix: dynamic convolution with global context (paper section 3.3)."""
