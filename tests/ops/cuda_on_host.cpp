// The bodies of the CUDA kernels, compiled for the host and run thread by thread.
//
// Between two barriers the threads of a block run one after the other, first to last or
// last to first: where the order changes a result, two threads meet in memory without a
// barrier. Shared memory starts as NaN, so that a value that was never staged shows.

#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "contmix_fold.cuh"
#include "contmix_forward.cuh"
#include "contmix_token_grad.cuh"
#include "contmix_value_grad.cuh"
#include "depthwise.cuh"
#include "neighborhood_aggregate.cuh"

using namespace overlock;

namespace {

template <int Threads>
struct HostBlock {
  bool reversed;

  template <typename V>
  struct PerThread {
    std::vector<V> values = std::vector<V>(Threads);
    V& operator[](int thread) { return values[thread]; }
  };

  template <typename Phase>
  void phase(Phase run) {
    for (int i = 0; i < Threads; ++i) run(reversed ? Threads - 1 - i : i);
  }
};

// Aligned as the kernels' vector loads need it.
struct SharedMemory {
  std::vector<Float4> words;

  explicit SharedMemory(int64_t floats) : words((floats + 3) / 4) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (Float4& word : words) word = {{nan, nan, nan, nan}};
  }
  float* data() { return words[0].v; }
};

template <int K, bool kWide>
void depthwise_of_size(const DepthwiseCall<float>& a, bool reversed) {
  HostBlock<kDepthwiseThreads> block{reversed};
  for (int64_t i = 0; i < a.batches * a.tiles() * a.slices(); ++i) {
    SharedMemory shared(kDepthwiseShared);
    depthwise_block<K, kWide>(block, a, i, shared.data());
  }
}

// Two bytes, as half-precision kernels move them.
struct BFloat16 {
  uint16_t bits;

  BFloat16() = default;
  explicit BFloat16(float value) {
    uint32_t word;
    std::memcpy(&word, &value, sizeof(word));
    bits = static_cast<uint16_t>((word + 0x7fff + ((word >> 16) & 1)) >> 16);
  }
  explicit operator float() const {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &word, sizeof(value));
    return value;
  }
};

template <typename T>
void fold(const Arguments<T>& a, const Folding<T>& folding, float* folded, bool reversed) {
  with_sizes(a.channels, a.query_channels, a.kernel_size, [&](auto channels, auto) {
    constexpr int CP = decltype(channels)::value;
    for (int i = 0; i < folding.pairs() * fold_tiles(folding.taps); ++i) {
      SharedMemory shared(kFoldFloats);
      HostBlock<kFoldThreads> block{reversed};
      fold_block<CP>(block, folding, folded, i, shared.data());
    }
  });
}

template <typename T>
void unfold(const Arguments<T>& a, const Folding<T>& folding, const float* d_folded, T* d_key,
            int slices, float* d_projection, bool reversed) {
  with_sizes(a.channels, a.query_channels, a.kernel_size, [&](auto channels, auto) {
    constexpr int CP = decltype(channels)::value;
    const int region_tiles = fold_tiles(folding.regions);
    for (int i = 0; i < folding.pairs() * region_tiles; ++i) {
      SharedMemory shared(kFoldFloats);
      HostBlock<kFoldThreads> block{reversed};
      unfold_key_block<CP>(block, folding, d_folded, d_key, i, shared.data());
    }
    for (int i = 0; i < slices * fold_tiles(folding.taps) * region_tiles; ++i) {
      SharedMemory shared(kFoldFloats);
      HostBlock<kFoldThreads> block{reversed};
      unfold_projection_block<CP>(block, folding, d_folded, slices, d_projection, i, shared.data());
    }
  });
}

template <typename T>
void forward(const Arguments<T>& a, const Map<T>& out, float* logsumexp, bool reversed) {
  with_sizes(a.channels, a.query_channels, a.kernel_size, [&](auto channels, auto window) {
    constexpr int CP = decltype(channels)::value, K = decltype(window)::value;
    for (int64_t i = 0; i < a.pairs() * a.tiles(); ++i) {
      SharedMemory shared(ForwardMemory<CP, T>(a, nullptr).floats);
      HostBlock<kThreads> block{reversed};
      forward_block<CP, K>(block, a, out, logsumexp, i, shared.data());
    }
  });
}

template <typename T>
void backward(const Arguments<T>& a, const TokenGradients<T>& gradients, const Map<T>& d_value,
              bool reversed) {
  with_sizes(a.channels, a.query_channels, a.kernel_size, [&](auto channels, auto window) {
    constexpr int CP = decltype(channels)::value, K = decltype(window)::value;
    for (int64_t i = 0; i < a.pairs() * gradients.chunks; ++i) {
      SharedMemory shared(TokenGradMemory<CP, T>(a, nullptr).floats);
      HostBlock<kThreads> block{reversed};
      token_grad_block<CP, K>(block, a, gradients, i, shared.data());
    }
    for (int64_t i = 0; i < a.pairs() * a.tiles(); ++i) {
      SharedMemory shared(ValueGradMemory<CP, T>(a, nullptr).floats);
      HostBlock<kThreads> block{reversed};
      value_grad_block<CP, K>(block, a, gradients.grad_out, gradients.logsumexp, d_value, i,
                              shared.data());
    }
  });
}

}  // namespace

extern "C" {

int depthwise_tiles(const DepthwiseCall<float>* a) { return a->tiles(); }

void depthwise(const DepthwiseCall<float>* a, int kernel_size, bool wide, bool reversed) {
  const auto run = [&](auto size) {
    constexpr int K = decltype(size)::value;
    return wide ? depthwise_of_size<K, true>(*a, reversed)
                : depthwise_of_size<K, false>(*a, reversed);
  };
  switch (kernel_size) {
    case 3:
      return run(std::integral_constant<int, 3>());
    case 5:
      return run(std::integral_constant<int, 5>());
    case 7:
      return run(std::integral_constant<int, 7>());
    case 17:
      return run(std::integral_constant<int, 17>());
  }
}

void depthwise_norm(const DepthwiseNorm<float>* a, bool reversed) {
  HostBlock<kNormThreads> block{reversed};
  for (int64_t i = 0; i < a->blocks(); ++i) {
    SharedMemory shared(kNormShared);
    depthwise_norm_block(block, *a, i, shared.data());
  }
}

// Column of F that holds the bias of the projection, and the number of columns.
int bias_column(int channels, int query_channels, int kernel_size) {
  int column = 0;
  with_sizes(channels, query_channels, kernel_size,
             [&](auto padded, auto) { column = decltype(padded)::value; });
  return column;
}
int folded_columns(int channels, int query_channels, int kernel_size) {
  int columns = 0;
  with_sizes(channels, query_channels, kernel_size,
             [&](auto padded, auto) { columns = kChannelStride<decltype(padded)::value>; });
  return columns;
}
int tiles(const Arguments<float>* a) { return a->tiles(); }

// The functions for a dtype of the activations; parameters are float32.
#define OVERLOCK_CONTMIX(suffix, T)                                                              \
  void contmix_fold_##suffix(const Arguments<T>* a, const Folding<T>* folding, float* folded,    \
                             bool reversed) {                                                    \
    fold(*a, *folding, folded, reversed);                                                        \
  }                                                                                              \
  void contmix_unfold_##suffix(const Arguments<T>* a, const Folding<T>* folding,                 \
                               const float* d_folded, T* d_key, int slices, float* d_projection, \
                               bool reversed) {                                                  \
    unfold(*a, *folding, d_folded, d_key, slices, d_projection, reversed);                       \
  }                                                                                              \
  void contmix_forward_##suffix(const Arguments<T>* a, const Map<T>* out, float* logsumexp,      \
                                bool reversed) {                                                 \
    forward(*a, *out, logsumexp, reversed);                                                      \
  }                                                                                              \
  void contmix_backward_##suffix(const Arguments<T>* a, const TokenGradients<T>* gradients,      \
                                 const Map<T>* d_value, bool reversed) {                         \
    backward(*a, *gradients, *d_value, reversed);                                                \
  }
OVERLOCK_CONTMIX(float32, float)
OVERLOCK_CONTMIX(bfloat16, BFloat16)

void neighborhood_aggregate(const AggregateSizes* sizes, const TokenMap<const float>* weight,
                            const TokenMap<const float>* value,
                            const TokenMap<const float>* grad_out, const TokenMap<float>* out,
                            const TokenMap<float>* d_weight, const TokenMap<float>* d_value) {
  const int64_t values = sizes->tokens() * sizes->channels;
  const int64_t weights = sizes->tokens() * sizes->kernel_size * sizes->kernel_size;
  for (int64_t i = 0; i < values; ++i) {
    aggregate_element(*sizes, *weight, *value, *out, i);
    value_grad_element(*sizes, *grad_out, *weight, *d_value, i);
  }
  for (int64_t i = 0; i < weights; ++i) {
    weight_grad_element(*sizes, *grad_out, *value, *d_weight, i);
  }
}

}  // extern "C"
