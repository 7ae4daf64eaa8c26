// Fused ContMix on the CPU. Logits exist for the tokens in work only.
//
// Affinity and projection are linear, so they fold into one matrix per plane:
//   logits[n] = P (key^T (scale * query[n])) = (scale * P key^T) query[n]
// with K*K x Cq entries instead of K*K x S, a third of the multiply-adds at Cq = 16, S = 49.
// The backward pass takes its gradient and unfolds it once, at the end.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>
#include <type_traits>

#include "block_operators.h"
#include "planes.h"

namespace overlock {
namespace {

// Tokens whose logits a thread holds at a time in the forward pass, for its first-level cache.
constexpr int64_t kBlock = 16;

template <typename T>
constexpr at::ScalarType kScalarType = c10::CppTypeToScalarType<T>::value;

// Sizes that both passes share; `ld` are padded sizes.
template <typename T>
struct Sizes {
  Sizes(const at::Tensor& query, const at::Tensor& value, int64_t kernel_size_)
      : planes(value.size(0) * value.size(1)),
        groups(value.size(1)),
        height(value.size(3)),
        width(value.size(4)),
        channels(value.size(2)),
        channels_ld(padded<T>(channels, kChannelAlign)),
        query_channels(query.size(2)),
        query_ld(padded<T>(query_channels, kChannelAlign)),
        kernel_size(kernel_size_),
        side(2 * kernel_size - 1),
        taps(kernel_size * kernel_size),
        taps_ld(padded<T>(taps, kTapAlign)) {}

  int64_t planes, groups, height, width, channels, channels_ld, query_channels, query_ld;
  int64_t kernel_size, side, taps, taps_ld;
};

Bfloat16* bits_of(c10::BFloat16* numbers) { return reinterpret_cast<Bfloat16*>(numbers); }

// The folded matrix of each plane: [B, G, Cq, taps_ld], contiguous, zero in padded taps.
template <typename S, typename T = at::opmath_type<S>>
at::Tensor fold(const Sizes<T>& sizes, const at::Tensor& key, const at::Tensor& proj_weight,
                double scale) {
  const int64_t channels = sizes.query_channels, regions = key.size(3);
  // [S][taps_ld]
  Scratch<T> projection(regions * sizes.taps_ld);
  const at::Tensor computed = proj_weight.to(kScalarType<T>).contiguous();
  const T* weight = computed.const_data_ptr<T>();
  for (int64_t tap = 0; tap < sizes.taps; ++tap) {
    for (int64_t s = 0; s < regions; ++s) {
      projection.data()[s * sizes.taps_ld + tap] =
          static_cast<T>(scale) * weight[tap * regions + s];
    }
  }
  const at::Tensor folded = at::zeros({key.size(0), sizes.groups, channels, sizes.taps_ld},
                                      key.options().dtype(kScalarType<T>));
  const int64_t grain = std::max<int64_t>(1, 262144 / (channels * regions * sizes.taps_ld));
  at::parallel_for(0, sizes.planes, grain, [&](int64_t begin, int64_t end) {
    std::vector<T> keys(channels * regions);
    for (int64_t index = begin; index < end; ++index) {
      const S* from = key.const_data_ptr<S>() + index / sizes.groups * key.stride(0) +
                      index % sizes.groups * key.stride(1);
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t s = 0; s < regions; ++s) {
          keys[c * regions + s] = static_cast<T>(from[c * key.stride(2) + s * key.stride(3)]);
        }
      }
      row_kernels<T>().gemm_add(
          channels, sizes.taps_ld, regions, keys.data(), regions, 1, projection.data(),
          sizes.taps_ld, folded.data_ptr<T>() + index * channels * sizes.taps_ld, sizes.taps_ld);
    }
  });
  return folded;
}

// Row of the bias table at which the window of token `i` begins; the same holds for columns.
int64_t bias_offset(int64_t i, int64_t size, int64_t kernel_size) {
  return window_start(i, size, kernel_size) - i + kernel_size - 1;
}

// What a thread holds of a plane to compute logits.
template <typename T>
class LogitRows {
 public:
  LogitRows(const Sizes<T>& sizes, const T* folded, const T* proj_bias, const T* rpb)
      : sizes_(sizes),
        folded_(folded),
        proj_bias_(proj_bias),
        rpb_(rpb),
        bias_(sizes.kernel_size * sizes.taps_ld),
        queries_(sizes.width * sizes.query_ld),
        tokens_(natural_order(sizes.width)),
        class_(sizes.width) {
    for (int64_t x = 0; x < sizes.width; ++x) {
      class_[x] = bias_offset(x, sizes.width, sizes.kernel_size);
    }
  }

  void set_plane(int64_t index) {
    rpb_plane_ = rpb_ + index % sizes_.groups * sizes_.side * sizes_.side;
    bias_row_ = -1;
    matrix_ = folded_ + index * sizes_.query_channels * sizes_.taps_ld;
  }

  template <typename S>
  void set_row(const Plane<S>& query, int64_t row) {
    pack_row(query, row, tokens_.data(), sizes_.width, sizes_.query_ld, queries_.data());
    const int64_t offset = bias_offset(row, sizes_.height, sizes_.kernel_size);
    if (offset != bias_row_) {
      bias_row_ = offset;
      set_bias(rpb_plane_ + offset * sizes_.side);
    }
  }

  // Logits of tokens [begin, end) of the row into rows of taps_ld.
  void logits(const RowKernels<T>& kernels, int64_t begin, int64_t end, T* out) {
    for (int64_t x = begin; x < end; ++x) {
      std::copy_n(bias_.data() + class_[x] * sizes_.taps_ld, sizes_.taps_ld,
                  out + (x - begin) * sizes_.taps_ld);
    }
    kernels.gemm_add(end - begin, sizes_.taps_ld, sizes_.query_channels,
                     queries_.data() + begin * sizes_.query_ld, sizes_.query_ld, 1, matrix_,
                     sizes_.taps_ld, out, sizes_.taps_ld);
  }

  const T* queries() { return queries_.data(); }
  const T* matrix() const { return matrix_; }
  const std::vector<int64_t>& tokens() const { return tokens_; }
  // Column of the bias table at which each token's window begins.
  const std::vector<int64_t>& column_class() const { return class_; }
  int64_t row_class() const { return bias_row_; }

 private:
  // Tokens whose windows begin at the same column of the table share their bias.
  void set_bias(const T* table) {
    // Padded taps get a weight of zero.
    constexpr T kNever = -1e30;
    const int64_t k = sizes_.kernel_size;
    for (int64_t offset = 0; offset < k; ++offset) {
      T* bias = bias_.data() + offset * sizes_.taps_ld;
      for (int64_t row = 0; row < k; ++row) {
        const T* from = table + row * sizes_.side + offset;
        for (int64_t column = 0; column < k; ++column) {
          bias[row * k + column] = proj_bias_[row * k + column] + from[column];
        }
      }
      std::fill(bias + sizes_.taps, bias + sizes_.taps_ld, kNever);
    }
  }

  const Sizes<T>& sizes_;
  const T* folded_;
  const T* proj_bias_;
  const T* rpb_;
  const T* rpb_plane_ = nullptr;
  const T* matrix_ = nullptr;
  int64_t bias_row_ = -1;
  Scratch<T> bias_, queries_;
  std::vector<int64_t> tokens_, class_;
};

// Writes the output and, unless null, the log-sum-exp. Values are packed as P: the type of
// arithmetic, or Pair, whose weights are rounded to bfloat16.
template <typename S, typename P>
void forward_with(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  const at::Tensor& proj_weight, const at::Tensor& proj_bias, const at::Tensor& rpb,
                  int64_t kernel_size, double scale, const at::Tensor& out,
                  at::opmath_type<S>* logsumexp) {
  using T = at::opmath_type<S>;
  constexpr bool kPairs = std::is_same_v<P, Pair>;
  const Sizes<T> sizes(query, value, kernel_size);
  const at::Tensor folded = fold<S>(sizes, key, proj_weight, scale);
  const at::Tensor bias = proj_bias.to(kScalarType<T>).contiguous();
  const at::Tensor table = rpb.to(kScalarType<T>).contiguous();
  const int64_t width = sizes.width, channels = sizes.channels;
  const int64_t ld = kPairs ? padded<P>(channels, kTapAlign) : sizes.channels_ld;
  const int64_t row_size = width * ld;
  const Columns columns(width, kernel_size, 1);
  const RowKernels<T>& kernels = row_kernels<T>();
  const PairRowKernels* pair_kernels = pair_row_kernels();
  const int64_t segment = rows_per_segment<P>(width, ld, kernel_size, 1);
  const int64_t grain = std::max<int64_t>(1, 8192 / (width * sizes.taps));

  at::parallel_for(0, sizes.planes * sizes.height, grain, [&](int64_t begin, int64_t end) {
    Scratch<P> values(most_touched(segment, sizes.height, kernel_size, 1) * row_size);
    Scratch<T> weights(kBlock * sizes.taps_ld + kTapAlign);
    Scratch<T> result(kPairs ? 0 : row_size);
    LogitRows<T> logit_rows(sizes, folded.data_ptr<T>(), bias.data_ptr<T>(), table.data_ptr<T>());
    while (begin < end) {
      const int64_t index = begin / sizes.height;
      RowRange rows{begin % sizes.height, 0};
      rows.end = std::min({rows.begin + segment, sizes.height, rows.begin + end - begin});
      begin += rows.size();
      logit_rows.set_plane(index);
      const Plane<S> source = plane_of<S>(value, index), target = plane_of<S>(out, index);
      const RowRange touched = touched_rows(rows, sizes.height, kernel_size, 1);
      for (int64_t row = touched.begin; row < touched.end; ++row) {
        P* packed = values.data() + (row - touched.begin) * row_size;
        if constexpr (kPairs) {
          pair_kernels->pack(width, channels, bits_of(&source.at(0, row, 0)), source.column_stride,
                             packed, ld);
        } else {
          pack_row(source, row, columns.position.data(), width, ld, packed);
        }
      }
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const int64_t start = window_start(row, sizes.height, kernel_size) - touched.begin;
        const P* window = values.data() + start * row_size;
        T* lse = logsumexp == nullptr ? nullptr : logsumexp + (index * sizes.height + row) * width;
        logit_rows.set_row(plane_of<S>(query, index), row);
        for (int64_t x = 0; x < width; x += kBlock) {
          const int64_t count = std::min(kBlock, width - x);
          logit_rows.logits(kernels, x, x + count, weights.data());
          kernels.softmax(count, sizes.taps_ld, weights.data(), lse == nullptr ? nullptr : lse + x);
          if constexpr (kPairs) {
            pair_kernels->aggregate(count, kernel_size, channels, weights.data(), sizes.taps_ld,
                                    window, row_size, ld, columns.start.data() + x,
                                    bits_of(&target.at(0, row, x)), target.column_stride);
          } else {
            kernels.aggregate(count, kernel_size, ld, weights.data(), sizes.taps_ld, window,
                              row_size, columns.start.data() + x, result.data() + x * ld);
          }
        }
        if constexpr (!kPairs) {
          unpack_row(result.data(), logit_rows.tokens().data(), width, ld, target, row);
        }
      }
    }
  });
}

template <typename S>
void forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
             const at::Tensor& proj_weight, const at::Tensor& proj_bias, const at::Tensor& rpb,
             int64_t kernel_size, double scale, const at::Tensor& out,
             at::opmath_type<S>* logsumexp) {
  auto run = forward_with<S, at::opmath_type<S>>;
  if constexpr (std::is_same_v<S, c10::BFloat16>) {
    if (pair_row_kernels() != nullptr && value.stride(2) == 1 && out.stride(2) == 1) {
      run = forward_with<S, Pair>;
    }
  }
  run(query, key, value, proj_weight, proj_bias, rpb, kernel_size, scale, out, logsumexp);
}

// Sums of a thread's task over its tokens, written where the tasks' results are added up.
template <typename T>
struct TaskSums {
  T* matrix;     // [Cq][taps_ld], gradient of the folded matrix
  T* proj_bias;  // [taps]
  T* rpb;        // [side][side]
};

// Adds the logit gradients of a row, summed per column class, to those of the bias tables.
template <typename T>
void add_bias_gradients(const Sizes<T>& sizes, int64_t row_class, const T* class_sums,
                        const TaskSums<T>& sums) {
  const int64_t k = sizes.kernel_size;
  for (int64_t offset = 0; offset < k; ++offset) {
    const T* sum = class_sums + offset * sizes.taps_ld;
    T* table = sums.rpb + row_class * sizes.side + offset;
    for (int64_t row = 0; row < k; ++row) {
      for (int64_t column = 0; column < k; ++column) {
        sums.proj_bias[row * k + column] += sum[row * k + column];
        table[row * sizes.side + column] += sum[row * k + column];
      }
    }
  }
}

template <typename S>
std::vector<at::Tensor> backward(const at::Tensor& grad_out, const at::Tensor& query,
                                 const at::Tensor& key, const at::Tensor& value,
                                 const at::Tensor& proj_weight, const at::Tensor& proj_bias,
                                 const at::Tensor& rpb, const at::Tensor& logsumexp,
                                 int64_t kernel_size, double scale) {
  using T = at::opmath_type<S>;
  const Sizes<T> sizes(query, value, kernel_size);
  const at::Tensor folded = fold<S>(sizes, key, proj_weight, scale);
  const at::Tensor bias = proj_bias.to(kScalarType<T>).contiguous();
  const at::Tensor table = rpb.to(kScalarType<T>).contiguous();
  const at::Tensor lse = logsumexp.contiguous();
  const at::Tensor d_query = at::empty_like(query), d_value = at::empty_like(value);

  const int64_t height = sizes.height, width = sizes.width;
  const int64_t row_size = width * sizes.channels_ld;
  const int64_t planar_ld = width + kTapAlign / static_cast<int64_t>(sizeof(T));
  const int64_t planar_size = sizes.channels * planar_ld;
  const Columns columns(width, kernel_size, 1);
  const RowKernels<T>& kernels = row_kernels<T>();
  const Tiling tiling(sizes.planes, height, kernel_size, 1);
  const int64_t tasks = sizes.planes * tiling.count();
  const auto options = value.options().dtype(kScalarType<T>);
  const at::Tensor waiting = at::empty({sizes.planes, tiling.shared * row_size}, options);
  const at::Tensor d_matrix = at::empty({tasks, sizes.query_channels, sizes.taps_ld}, options);
  const at::Tensor d_bias = at::empty({tasks, sizes.taps}, options);
  const at::Tensor d_table = at::empty({tasks, sizes.side * sizes.side}, options);

  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> values(tiling.most_touched * planar_size);
    Scratch<T> d_values(tiling.most_touched * row_size);
    Scratch<T> weights(width * sizes.taps_ld);
    Scratch<T> d_logits(width * sizes.taps_ld + kTapAlign);
    Scratch<T> grad(row_size), d_queries(width * sizes.query_ld);
    Scratch<T> transposed(sizes.taps * sizes.query_ld);
    Scratch<T> class_sums(kernel_size * sizes.taps_ld);
    LogitRows<T> logit_rows(sizes, folded.data_ptr<T>(), bias.data_ptr<T>(), table.data_ptr<T>());
    const int64_t* tokens = logit_rows.tokens().data();
    for (int64_t task = begin; task < end; ++task) {
      const int64_t index = task / tiling.count();
      const int64_t tile = task % tiling.count();
      const RowRange rows = tiling.tiles[tile], touched = tiling.touched[tile];
      logit_rows.set_plane(index);
      for (int64_t c = 0; c < sizes.query_channels; ++c) {
        for (int64_t tap = 0; tap < sizes.taps; ++tap) {
          transposed.data()[tap * sizes.query_ld + c] =
              logit_rows.matrix()[c * sizes.taps_ld + tap];
        }
      }
      const Plane<S> source = plane_of<S>(value, index);
      for (int64_t row = touched.begin; row < touched.end; ++row) {
        pack_row_planar(source, row, columns.position.data(), width, planar_ld,
                        values.data() + (row - touched.begin) * planar_size);
      }
      d_values.fill(touched.size() * row_size, T(0));
      const TaskSums<T> sums{d_matrix.data_ptr<T>() + task * sizes.query_channels * sizes.taps_ld,
                             d_bias.data_ptr<T>() + task * sizes.taps,
                             d_table.data_ptr<T>() + task * sizes.side * sizes.side};
      std::fill_n(sums.matrix, sizes.query_channels * sizes.taps_ld, T(0));
      std::fill_n(sums.proj_bias, sizes.taps, T(0));
      std::fill_n(sums.rpb, sizes.side * sizes.side, T(0));

      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const int64_t start = window_start(row, height, kernel_size) - touched.begin;
        logit_rows.set_row(plane_of<S>(query, index), row);
        pack_row(plane_of<S>(grad_out, index), row, tokens, width, sizes.channels_ld, grad.data());
        logit_rows.logits(kernels, 0, width, weights.data());
        kernels.softmax_again(width, sizes.taps_ld, weights.data(),
                              lse.data_ptr<T>() + (index * height + row) * width);
        kernels.scatter(width, kernel_size, sizes.channels_ld, weights.data(), sizes.taps_ld,
                        grad.data(), columns.start.data(), columns.first.data(),
                        columns.count.data(), columns.step, d_values.data() + start * row_size,
                        row_size);
        kernels.dot(width, kernel_size, sizes.channels, grad.data(), sizes.channels_ld,
                    values.data() + start * planar_size, planar_size, planar_ld,
                    columns.start.data(), d_logits.data(), sizes.taps_ld);
        kernels.softmax_backward(width, sizes.taps_ld, weights.data(), d_logits.data());

        d_queries.fill(width * sizes.query_ld, T(0));
        kernels.gemm_add(width, sizes.query_ld, sizes.taps, d_logits.data(), sizes.taps_ld, 1,
                         transposed.data(), sizes.query_ld, d_queries.data(), sizes.query_ld);
        unpack_row(d_queries.data(), tokens, width, sizes.query_ld, plane_of<S>(d_query, index),
                   row);
        kernels.gemm_add(sizes.query_channels, sizes.taps_ld, width, logit_rows.queries(), 1,
                         sizes.query_ld, d_logits.data(), sizes.taps_ld, sums.matrix,
                         sizes.taps_ld);

        class_sums.fill(kernel_size * sizes.taps_ld, T(0));
        for (int64_t x = 0; x < width; ++x) {
          kernels.add(sizes.taps_ld, d_logits.data() + x * sizes.taps_ld,
                      class_sums.data() + logit_rows.column_class()[x] * sizes.taps_ld);
        }
        add_bias_gradients(sizes, logit_rows.row_class(), class_sums.data(), sums);
      }
      store_tile(d_values.data(), tiling, tile, columns, sizes.channels_ld,
                 plane_of<S>(d_value, index),
                 waiting.data_ptr<T>() + index * tiling.shared * row_size);
    }
  });
  at::parallel_for(0, sizes.planes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      add_up_tiles(waiting.data_ptr<T>() + index * tiling.shared * row_size, tiling, columns,
                   sizes.channels_ld, height, plane_of<S>(d_value, index));
    }
  });

  // Unfold: folded = scale * key^T P^T per plane.
  const int64_t batch = value.size(0), groups = value.size(1);
  const at::Tensor d_folded =
      d_matrix.view({batch, groups, tiling.count(), sizes.query_channels, sizes.taps_ld})
          .sum(2)
          .slice(-1, 0, sizes.taps)
          .mul_(scale);
  const at::Tensor d_key = at::matmul(d_folded, proj_weight.to(kScalarType<T>));
  const at::Tensor d_proj_weight =
      at::matmul(d_folded.flatten(0, 2).t(), key.to(kScalarType<T>).flatten(0, 2));
  const at::Tensor d_rpb = d_table.view({batch, groups, tiling.count(), sizes.side, sizes.side})
                               .sum(at::IntArrayRef{0, 2});
  const auto as = [](const at::Tensor& tensor, const at::Tensor& gradient) {
    return gradient.to(tensor.scalar_type()).contiguous();
  };
  return {d_query,
          as(key, d_key),
          d_value,
          as(proj_weight, d_proj_weight),
          as(proj_bias, d_bias.sum(0)),
          as(rpb, d_rpb)};
}

std::tuple<at::Tensor, at::Tensor> contmix_forward(const at::Tensor& query, const at::Tensor& key,
                                                   const at::Tensor& value,
                                                   const at::Tensor& proj_weight,
                                                   const at::Tensor& proj_bias,
                                                   const at::Tensor& rpb, int64_t kernel_size,
                                                   double scale) {
  const at::Tensor out = at::empty_like(value);
  const auto type = at::toOpMathType(value.scalar_type());
  const at::Tensor logsumexp = at::empty(
      {value.size(0), value.size(1), value.size(3), value.size(4)}, value.options().dtype(type));
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, value.scalar_type(), "contmix_forward", [&] {
        forward<scalar_t>(query, key, value, proj_weight, proj_bias, rpb, kernel_size, scale, out,
                          logsumexp.data_ptr<at::opmath_type<scalar_t>>());
      });
  return {out, logsumexp};
}

using Gradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Gradients contmix_backward(const at::Tensor& grad_out, const at::Tensor& query,
                           const at::Tensor& key, const at::Tensor& value,
                           const at::Tensor& proj_weight, const at::Tensor& proj_bias,
                           const at::Tensor& rpb, const at::Tensor& /* out */,
                           const at::Tensor& logsumexp, int64_t kernel_size, double scale) {
  const std::vector<at::Tensor> g = AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, value.scalar_type(), "contmix_backward", [&] {
        return backward<scalar_t>(grad_out, query, key, value, proj_weight, proj_bias, rpb,
                                  logsumexp, kernel_size, scale);
      });
  return {g[0], g[1], g[2], g[3], g[4], g[5]};
}

}  // namespace

void contmix_into(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  const at::Tensor& proj_weight, const at::Tensor& proj_bias, const at::Tensor& rpb,
                  int64_t kernel_size, double scale, const at::Tensor& out) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "contmix_into",
                                  [&] {
                                    forward<scalar_t>(query, key, value, proj_weight, proj_bias,
                                                      rpb, kernel_size, scale, out, nullptr);
                                  });
}

TORCH_LIBRARY_IMPL(overlock_mm_C, CPU, m) {
  m.impl("contmix_forward", &contmix_forward);
  m.impl("contmix_backward", &contmix_backward);
}

}  // namespace overlock
