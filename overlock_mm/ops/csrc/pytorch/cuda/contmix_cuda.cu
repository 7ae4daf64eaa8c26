// CUDA backend of contmix: launches the kernels of common/cuda on the current stream.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <tuple>

#include "../../common/cuda/contmix_fold.cuh"
#include "../../common/cuda/contmix_forward.cuh"
#include "../../common/cuda/contmix_token_grad.cuh"
#include "../../common/cuda/contmix_value_grad.cuh"

namespace overlock {
namespace {

using at::Tensor;

// Sums over batches and groups that the gradient of the projection is made of, at most.
constexpr int kMaxSlices = 64;

// Blocks that a multiprocessor shall run at a time, which bounds the registers.
template <int CP, int K>
constexpr int kForwardBlocks = CP <= 16 && K > 0 ? 12 : 8;
constexpr int kBackwardBlocks = 8;

template <int CP, int K, typename T>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<CP, K>)
    forward_kernel(Arguments<T> a, Map<T> out, float* logsumexp) {
  extern __shared__ Float4 shared[];
  DeviceBlock block;
  forward_block<CP, K>(block, a, out, logsumexp, blockIdx.x, reinterpret_cast<float*>(shared));
}

template <int CP, int K, typename T>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks)
    token_grad_kernel(Arguments<T> a, TokenGradients<T> gradients) {
  extern __shared__ Float4 shared[];
  DeviceBlock block;
  token_grad_block<CP, K>(block, a, gradients, blockIdx.x, reinterpret_cast<float*>(shared));
}

template <int CP, int K, typename T>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks)
    value_grad_kernel(Arguments<T> a, Map<const T> grad_out, const float* logsumexp,
                      Map<T> d_value) {
  extern __shared__ Float4 shared[];
  DeviceBlock block;
  value_grad_block<CP, K>(block, a, grad_out, logsumexp, d_value, blockIdx.x,
                          reinterpret_cast<float*>(shared));
}

template <int CP, typename T>
__global__ void __launch_bounds__(kFoldThreads) fold_kernel(Folding<T> folding, float* folded) {
  __shared__ Float4 shared[kFoldFloats / 4];
  DeviceBlock block;
  fold_block<CP>(block, folding, folded, blockIdx.x, shared[0].v);
}

template <int CP, typename T>
__global__ void __launch_bounds__(kFoldThreads)
    unfold_key_kernel(Folding<T> folding, const float* d_folded, T* d_key) {
  __shared__ Float4 shared[kFoldFloats / 4];
  DeviceBlock block;
  unfold_key_block<CP>(block, folding, d_folded, d_key, blockIdx.x, shared[0].v);
}

template <int CP, typename T>
__global__ void __launch_bounds__(kFoldThreads)
    unfold_projection_kernel(Folding<T> folding, const float* d_folded, int slices,
                             float* d_projection) {
  __shared__ Float4 shared[kFoldFloats / 4];
  DeviceBlock block;
  unfold_projection_block<CP>(block, folding, d_folded, slices, d_projection, blockIdx.x,
                              shared[0].v);
}

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

// Lets a kernel use all shared memory that the device offers, whatever a launch needs: where
// the limit followed each launch, a second thread could lower it before the first has launched.
template <auto kKernel>
void allow_shared_memory() {
  static std::atomic<uint64_t> done{0};  // a bit for each device
  int device = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  const uint64_t bit = uint64_t{1} << (device % 64);
  if (device < 64 && (done.load() & bit) != 0) return;
  C10_CUDA_CHECK(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)));
  done.fetch_or(bit);
}

void check_blocks(int64_t blocks) {
  TORCH_CHECK(blocks <= std::numeric_limits<int>::max(), "contmix (cuda): the map needs ", blocks,
              " thread blocks, and a launch takes 2^31 - 1; split the batch.");
}

template <auto kKernel, typename... Values>
void launch(int64_t blocks, int64_t floats, Values... values) {
  check_blocks(blocks);
  allow_shared_memory<kKernel>();
  const auto stream = c10::cuda::getCurrentCUDAStream();
  kKernel<<<static_cast<unsigned>(blocks), kThreads, floats * sizeof(float), stream>>>(values...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// A kernel of contmix_fold.cuh.
template <auto kKernel, typename... Values>
void launch_fold(int64_t blocks, Values... values) {
  check_blocks(blocks);
  const auto stream = c10::cuda::getCurrentCUDAStream();
  kKernel<<<static_cast<unsigned>(blocks), kFoldThreads, 0, stream>>>(values...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// Blocks of a kernel that the device runs at a time.
template <auto kKernel>
int64_t resident_blocks(int64_t floats) {
  allow_shared_memory<kKernel>();
  int blocks = 0;
  C10_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kKernel, kThreads,
                                                               floats * sizeof(float)));
  return static_cast<int64_t>(blocks) * attribute(cudaDevAttrMultiProcessorCount);
}

// [B, G, C, H, W], or [B, G, C, S] for keys.
template <typename T>
Map<const T> input_map(const Tensor& tensor) {
  const bool keys = tensor.dim() == 4;
  return {tensor.const_data_ptr<T>(), tensor.stride(0), tensor.stride(1),
          tensor.stride(2),           tensor.stride(3), keys ? 0 : tensor.stride(4)};
}

template <typename T>
Map<T> output_map(const Tensor& tensor) {
  return {tensor.mutable_data_ptr<T>(),
          tensor.stride(0),
          tensor.stride(1),
          tensor.stride(2),
          tensor.stride(3),
          tensor.stride(4)};
}

// Parameters as the kernels read them: contiguous float32.
struct Parameters {
  Tensor weight, bias, rpb;

  Parameters(const Tensor& proj_weight, const Tensor& proj_bias, const Tensor& position_bias)
      : weight(proj_weight.to(at::kFloat).contiguous()),
        bias(proj_bias.to(at::kFloat).contiguous()),
        rpb(position_bias.to(at::kFloat).contiguous()) {}
};

template <typename T>
Folding<T> folding(const Tensor& key, const Parameters& parameters, double scale) {
  return {input_map<T>(key),
          parameters.weight.const_data_ptr<float>(),
          parameters.bias.const_data_ptr<float>(),
          static_cast<int>(key.size(0)),
          static_cast<int>(key.size(1)),
          static_cast<int>(key.size(2)),
          static_cast<int>(key.size(3)),
          static_cast<int>(parameters.bias.size(0)),
          static_cast<float>(scale)};
}

// F of contmix_fold.cuh, [B, G, K*K, kChannelStride].
template <int CP, typename T>
Tensor fold(const Folding<T>& folding, const Tensor& value) {
  Tensor folded = at::empty({folding.batches, folding.groups, folding.taps, kChannelStride<CP>},
                            value.options().dtype(at::kFloat));
  launch_fold<fold_kernel<CP, T>>(int64_t{folding.pairs()} * fold_tiles(folding.taps), folding,
                                  folded.mutable_data_ptr<float>());
  return folded;
}

template <typename T>
Arguments<T> arguments(const Tensor& query, const Tensor& value, const Tensor& folded,
                       const Parameters& parameters, int64_t kernel_size) {
  return {input_map<T>(query),
          input_map<T>(value),
          folded.const_data_ptr<float>(),
          parameters.rpb.const_data_ptr<float>(),
          static_cast<int>(value.size(0)),
          static_cast<int>(value.size(1)),
          static_cast<int>(query.size(2)),
          static_cast<int>(value.size(2)),
          static_cast<int>(value.size(3)),
          static_cast<int>(value.size(4)),
          static_cast<int>(kernel_size)};
}

void check_sizes(const Tensor& key, const Tensor& value, int64_t kernel_size) {
  TORCH_CHECK(key.size(2) <= 32 && value.size(2) <= 32,
              "contmix (cuda): Cq and C must be at most 32, got ", key.size(2), " and ",
              value.size(2), ".");
  TORCH_CHECK(kernel_size <= kMaxKernelSize, "contmix (cuda): kernel_size must be at most ",
              kMaxKernelSize, ", got ", kernel_size, ".");
}

// Calls run(T(), integral constant CP, integral constant K).
template <typename Run>
void dispatch(const Tensor& query, const Tensor& value, int64_t kernel_size, Run run) {
  const auto with_type = [&](auto zero) {
    with_sizes(value.size(2), query.size(2), kernel_size,
               [&](auto channels, auto window) { run(zero, channels, window); });
  };
  AT_DISPATCH_SWITCH(value.scalar_type(), "contmix (cuda)",
                     AT_DISPATCH_CASE(at::kFloat, [&] { with_type(scalar_t()); })
                         AT_DISPATCH_CASE(at::kHalf, [&] { with_type(scalar_t()); })
                             AT_DISPATCH_CASE(at::kBFloat16, [&] { with_type(scalar_t()); }));
}

std::tuple<Tensor, Tensor> contmix_forward(const Tensor& query, const Tensor& key,
                                           const Tensor& value, const Tensor& proj_weight,
                                           const Tensor& proj_bias, const Tensor& rpb,
                                           int64_t kernel_size, double scale) {
  const c10::cuda::CUDAGuard guard(value.device());
  check_sizes(key, value, kernel_size);
  Tensor out = at::empty_like(value);
  Tensor logsumexp = at::empty({value.size(0), value.size(1), value.size(3), value.size(4)},
                               value.options().dtype(at::kFloat));
  if (value.numel() == 0) return {out, logsumexp};
  const Parameters parameters(proj_weight, proj_bias, rpb);
  dispatch(query, value, kernel_size, [&](auto zero, auto channels, auto window) {
    using T = decltype(zero);
    constexpr int CP = decltype(channels)::value, K = decltype(window)::value;
    const Tensor folded = fold<CP>(folding<T>(key, parameters, scale), value);
    const auto a = arguments<T>(query, value, folded, parameters, kernel_size);
    launch<forward_kernel<CP, K, T>>(a.pairs() * a.tiles(), ForwardMemory<CP, T>(a, nullptr).floats,
                                     a, output_map<T>(out), logsumexp.mutable_data_ptr<float>());
  });
  return {out, logsumexp};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> contmix_backward(
    const Tensor& grad_out, const Tensor& query, const Tensor& key, const Tensor& value,
    const Tensor& proj_weight, const Tensor& proj_bias, const Tensor& rpb, const Tensor& out,
    const Tensor& logsumexp, int64_t kernel_size, double scale) {
  const c10::cuda::CUDAGuard guard(value.device());
  check_sizes(key, value, kernel_size);
  Tensor d_query = at::empty_like(query);
  Tensor d_key = at::empty_like(key, at::MemoryFormat::Contiguous);
  Tensor d_value = at::empty_like(value);
  if (value.numel() == 0) {
    return {d_query,
            d_key.zero_(),
            d_value,
            at::zeros_like(proj_weight),
            at::zeros_like(proj_bias),
            at::zeros_like(rpb)};
  }
  const Parameters parameters(proj_weight, proj_bias, rpb);
  const Tensor lse = logsumexp.contiguous();
  const auto options = value.options().dtype(at::kFloat);
  const int64_t batches = value.size(0), groups = value.size(1);
  const int64_t taps = kernel_size * kernel_size, side = 2 * kernel_size - 1;
  Tensor d_projection, d_bias, d_rpb;
  dispatch(query, value, kernel_size, [&](auto zero, auto channels, auto window) {
    using T = decltype(zero);
    constexpr int CP = decltype(channels)::value, K = decltype(window)::value;
    const Folding<T> f = folding<T>(key, parameters, scale);
    const Tensor folded = fold<CP>(f, value);
    const auto a = arguments<T>(query, value, folded, parameters, kernel_size);
    const int64_t token_floats = TokenGradMemory<CP, T>(a, nullptr).floats;
    const int64_t blocks = resident_blocks<token_grad_kernel<CP, K, T>>(token_floats);
    const int64_t chunks = std::clamp<int64_t>(blocks / a.pairs(), 1, a.tiles());
    Tensor d_folded = at::empty({batches, groups, chunks, taps, kChannelStride<CP>}, options);
    d_rpb = at::empty({batches, groups, chunks, side, side}, options);
    const TokenGradients<T> gradients = {input_map<T>(grad_out),
                                         input_map<T>(out),
                                         lse.const_data_ptr<float>(),
                                         output_map<T>(d_query),
                                         d_folded.mutable_data_ptr<float>(),
                                         d_rpb.mutable_data_ptr<float>(),
                                         chunks};
    launch<token_grad_kernel<CP, K, T>>(a.pairs() * chunks, token_floats, a, gradients);
    launch<value_grad_kernel<CP, K, T>>(
        a.pairs() * a.tiles(), ValueGradMemory<CP, T>(a, nullptr).floats, a, gradients.grad_out,
        gradients.logsumexp, output_map<T>(d_value));
    d_folded = d_folded.sum(2);
    d_bias = d_folded.select(3, CP).sum(at::IntArrayRef{0, 1}, false, proj_bias.scalar_type());
    launch_fold<unfold_key_kernel<CP, T>>(int64_t{f.pairs()} * fold_tiles(f.regions), f,
                                          d_folded.const_data_ptr<float>(),
                                          d_key.mutable_data_ptr<T>());
    const int slices = std::min(f.pairs(), kMaxSlices);
    d_projection = at::empty({slices, taps, key.size(3)}, options);
    launch_fold<unfold_projection_kernel<CP, T>>(
        int64_t{slices} * fold_tiles(f.taps) * fold_tiles(f.regions), f,
        d_folded.const_data_ptr<float>(), slices, d_projection.mutable_data_ptr<float>());
  });
  return {d_query, d_key,
          d_value, d_projection.sum(0, false, proj_weight.scalar_type()),
          d_bias,  d_rpb.sum(at::IntArrayRef{0, 2}, false, rpb.scalar_type())};
}

// Whether this binary holds code that the device can run: all kernels are compiled for the same
// architectures, so one represents all. A missing image would only be an error at the launch.
bool has_cuda_code(int64_t device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, forward_kernel<16, 13, float>);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
      error == cudaErrorUnsupportedPtxVersion) {
    cudaGetLastError();  // clears the error, which the next call would report
    return false;
  }
  C10_CUDA_CHECK(error);
  return true;
}

}  // namespace

TORCH_LIBRARY_IMPL(overlock_mm_C, CompositeImplicitAutograd, m) {
  m.impl("has_cuda_code", &has_cuda_code);
}

TORCH_LIBRARY_IMPL(overlock_mm_C, CUDA, m) {
  m.impl("contmix_forward", &contmix_forward);
  m.impl("contmix_backward", &contmix_backward);
}

}  // namespace overlock
