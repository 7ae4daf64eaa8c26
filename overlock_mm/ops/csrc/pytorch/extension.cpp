// Schemas of the compiled backends and the Python module that carries them.
//
// overlock_mm/ops/*/registration.py define the public operators; these are the
// functions of a backend, without autograd, on checked and non-empty arguments. Kernels are
// registered where they are: pytorch/cpu/*.cpp for CPU, pytorch/cuda/*.cu for CUDA.

#include <Python.h>
#include <ATen/Version.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstdlib>
#include <string>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "../common/window.h"
#include "cpu/kept_memory.h"

namespace overlock {

// The border rule of the compiled backends, [3, size]: the first row of each token's window, and
// the first and last token whose window holds each row.
at::Tensor border_rule(int64_t size, int64_t kernel_size, int64_t dilation) {
  at::Tensor table = at::empty({3, size}, at::kLong);
  for (int64_t i = 0; i < size; ++i) {
    table[0][i] = window_start(i, size, kernel_size, dilation);
    table[1][i] = inverse_first(i, kernel_size, dilation);
    table[2][i] = inverse_last(i, size, kernel_size, dilation);
  }
  return table;
}

// glibc returns freed memory to the system: at once what is as large as the largest block so far,
// the rest when 128 KiB or a little more lies at the end of the heap. Each pass of a network would
// then wait for the same pages again. Here blocks up to 32 MiB, the most that glibc allows, stay in
// the heap, and up to 128 MiB at its end. What the user sets prevails.
bool keep_freed_memory() {
#ifdef __GLIBC__
  for (const char* name : {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}) {
    if (std::getenv(name) != nullptr) {
      return false;
    }
  }
  return mallopt(M_MMAP_THRESHOLD, kLargestInHeap) == 1 &&
         mallopt(M_TRIM_THRESHOLD, 128 << 20) == 1;
#else
  return false;
#endif
}

const bool keeps_freed_memory = keep_freed_memory();

// Raise it together with INTERFACE in overlock_mm/ops/extension.py when functions are added or
// change, so that Python recognises an outdated compilation.
int64_t interface() { return 3; }

TORCH_LIBRARY(overlock_mm_C, m) {
  m.def(
      "contmix_forward(Tensor query, Tensor key, Tensor value, Tensor proj_weight, "
      "Tensor proj_bias, Tensor rpb, int kernel_size, float scale) -> (Tensor, Tensor)");
  m.def(
      "contmix_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, "
      "Tensor proj_weight, Tensor proj_bias, Tensor rpb, Tensor out, Tensor logsumexp, "
      "int kernel_size, float scale) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "neighborhood_aggregate_forward(Tensor weight, Tensor value, int kernel_size, "
      "int dilation) -> Tensor");
  m.def(
      "neighborhood_aggregate_backward(Tensor grad_out, Tensor weight, Tensor value, "
      "int kernel_size, int dilation) -> (Tensor, Tensor)");
  m.def(
      "depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? input_bias, "
      "Tensor? addend, bool gelu_input, bool gelu_output) -> Tensor");
  m.def(
      "depthwise_conv2d_norm(Tensor x, Tensor weight, Tensor? bias, Tensor norm_weight, "
      "Tensor norm_bias, float eps, Tensor? skip_weight, Tensor? skip_bias) -> (Tensor, Tensor)");
  m.def(
      "depthwise_conv2d_stats(Tensor x, Tensor weight, Tensor? bias, Tensor? input_bias, "
      "Tensor? addend, bool gelu_input, str stat) -> (Tensor, Tensor)");
  m.def("fused_block(Tensor x, Tensor[] parameters, float eps, bool onednn) -> Tensor");
  m.def(
      "fused_dynamic_block(Tensor x, Tensor context, Tensor prior, Tensor[] context_scales, "
      "Tensor[] parameters, float[] eps, int[] split_sizes, int groups, int[] kernel_sizes, int[] "
      "upsampled_size, "
      "bool onednn) -> Tensor");
  m.def("interface() -> int", &interface);
  m.def("has_cuda_code(int device) -> bool");
  m.def("border_rule(int size, int kernel_size, int dilation) -> Tensor", &border_rule);
}

}  // namespace overlock

extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
