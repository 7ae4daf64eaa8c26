"""What the compilers make of the GPU kernels, and what that predicts. No GPU is needed."""
