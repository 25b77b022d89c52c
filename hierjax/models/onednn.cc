// Convolutions and matrix products by oneDNN as handlers of XLA's foreign function interface;
// `onednn.py` compiles this.
//
// Maps are [B, H, W, C], kernels [k, k, C / groups, O], of float32 or bfloat16. The attribute
// "geometry" is the stride and the pixels of padding above, below, left and right. Of a product
// [N, n, d] x [N, d, m], "transposed" says for each of the two whether its last axes are exchanged.

#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using dnnl::memory;
using Array = ffi::AnyBuffer;
using Result = ffi::Result<Array>;
using Numbers = ffi::Span<const int64_t>;
using Shape = std::vector<int64_t>;

enum class Pass { kForward, kInputGradient, kKernelGradient };

dnnl::engine& Cpu() {
  static dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

// Memory for one call, kept for the next: what is given back would have to be cleared again.
class Workspace {
 public:
  char* Get(size_t size) {
    if (size > size_) {
      bytes_.reset();
      bytes_.reset(new char[size + kAlignment]);
      size_ = size;
    }
    auto address = reinterpret_cast<uintptr_t>(bytes_.get());
    return bytes_.get() + (kAlignment - address % kAlignment) % kAlignment;
  }
  static size_t RoundUp(size_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

 private:
  static constexpr size_t kAlignment = 64;
  std::unique_ptr<char[]> bytes_;
  size_t size_ = 0;
};

Shape ShapeOf(const Array& array) {
  return Shape(array.dimensions().begin(), array.dimensions().end());
}

memory::data_type TypeOf(const Array& array) {
  bool is_half = array.element_type() == ffi::DataType::BF16;
  return is_half ? memory::data_type::bf16 : memory::data_type::f32;
}

memory::desc MapsOf(const Array& array) {
  Shape s = ShapeOf(array);
  return memory::desc({s[0], s[3], s[1], s[2]}, TypeOf(array), memory::format_tag::nhwc);
}

memory::desc KernelOf(const Array& array, int64_t groups) {
  Shape s = ShapeOf(array);
  int64_t in = s[2], out = s[3];
  Shape shape{out / groups, in, s[0], s[1]}, strides{1, out, s[1] * in * out, in * out};
  if (groups > 1) {
    shape.insert(shape.begin(), groups);
    strides.insert(strides.begin(), out / groups);
  }
  return memory::desc(shape, TypeOf(array), strides);
}

// A compiled convolution or gradient. oneDNN chooses how the kernel lies in memory; `order` copies
// it from or to how jax has it.
struct Convolution {
  dnnl::primitive compute;
  dnnl::reorder order;
  memory::desc x, y, kernel, ordered_kernel, scratchpad;

  Convolution(Pass pass, const Array& x_array, const Array& kernel_array, const Array& y_array,
              const Shape& geometry)
      : x(MapsOf(x_array)), y(MapsOf(y_array)) {
    kernel = KernelOf(kernel_array, ShapeOf(x_array)[3] / ShapeOf(kernel_array)[2]);
    memory::desc any(kernel.get_dims(), kernel.get_data_type(), memory::format_tag::any);
    Shape strides{geometry[0], geometry[0]};
    Shape before{geometry[1], geometry[3]}, after{geometry[2], geometry[4]};
    auto direct = dnnl::algorithm::convolution_direct;
    dnnl::primitive_attr own_memory;
    own_memory.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    dnnl::convolution_forward::primitive_desc forward(Cpu(), dnnl::prop_kind::forward_training,
                                                      direct, x, any, y, strides, before, after,
                                                      own_memory);
    if (pass == Pass::kForward) {
      compute = dnnl::convolution_forward(forward);
      ordered_kernel = forward.weights_desc();
      scratchpad = forward.scratchpad_desc();
    } else if (pass == Pass::kInputGradient) {
      dnnl::convolution_backward_data::primitive_desc backward(
          Cpu(), direct, x, any, y, strides, before, after, forward, own_memory);
      compute = dnnl::convolution_backward_data(backward);
      ordered_kernel = backward.weights_desc();
      scratchpad = backward.scratchpad_desc();
    } else {
      dnnl::convolution_backward_weights::primitive_desc backward(
          Cpu(), direct, x, any, y, strides, before, after, forward, own_memory);
      compute = dnnl::convolution_backward_weights(backward);
      ordered_kernel = backward.diff_weights_desc();
      scratchpad = backward.scratchpad_desc();
    }
    if (HasOrder()) {
      bool is_result = pass == Pass::kKernelGradient;
      order = dnnl::reorder({Cpu(), is_result ? ordered_kernel : kernel, Cpu(),
                             is_result ? kernel : ordered_kernel});
    }
  }

  bool HasOrder() const { return ordered_kernel != kernel; }

  void Run(Pass pass, void* x_data, void* kernel_data, void* y_data, Workspace& workspace) {
    size_t kernel_size = HasOrder() ? Workspace::RoundUp(ordered_kernel.get_size()) : 0;
    char* own = workspace.Get(kernel_size + scratchpad.get_size());
    memory given(kernel, Cpu(), kernel_data);
    memory ordered(ordered_kernel, Cpu(), HasOrder() ? own : kernel_data);
    dnnl::stream stream(Cpu());
    if (HasOrder() && pass != Pass::kKernelGradient) order.execute(stream, given, ordered);
    bool is_forward = pass == Pass::kForward;
    bool is_input = pass == Pass::kInputGradient, is_kernel = pass == Pass::kKernelGradient;
    std::unordered_map<int, memory> arguments{
        {is_input ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, memory(x, Cpu(), x_data)},
        {is_kernel ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, ordered},
        {is_forward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, memory(y, Cpu(), y_data)},
        {DNNL_ARG_SCRATCHPAD, memory(scratchpad, Cpu(), own + kernel_size)}};
    compute.execute(stream, arguments);
    if (HasOrder() && pass == Pass::kKernelGradient) order.execute(stream, ordered, given);
    stream.wait();
  }
};

// A compiled product of matrices.
struct Product {
  dnnl::matmul compute;
  memory::desc a, b, result, scratchpad;

  Product(const Array& a_array, const Array& b_array, const Array& result_array,
          const Shape& transposed)
      : a(Matrices(a_array, transposed[0])),
        b(Matrices(b_array, transposed[1])),
        result(Matrices(result_array, false)) {
    dnnl::primitive_attr own_memory;
    own_memory.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    dnnl::matmul::primitive_desc product(Cpu(), a, b, result, own_memory);
    compute = dnnl::matmul(product);
    scratchpad = product.scratchpad_desc();
  }

  static memory::desc Matrices(const Array& array, bool is_transposed) {
    Shape s = ShapeOf(array), strides{s[1] * s[2], s[2], 1};
    if (is_transposed) {
      std::swap(s[1], s[2]);
      std::swap(strides[1], strides[2]);
    }
    return memory::desc(s, TypeOf(array), strides);
  }

  void Run(void* a_data, void* b_data, void* result_data, Workspace& workspace) {
    dnnl::stream stream(Cpu());
    memory own(scratchpad, Cpu(), workspace.Get(scratchpad.get_size()));
    compute.execute(stream, {{DNNL_ARG_SRC, memory(a, Cpu(), a_data)},
                             {DNNL_ARG_WEIGHTS, memory(b, Cpu(), b_data)},
                             {DNNL_ARG_DST, memory(result, Cpu(), result_data)},
                             {DNNL_ARG_SCRATCHPAD, own}});
    stream.wait();
  }
};

// Runs compute(workspace). Each call uses all cores: two at a time would only disturb each other.
// No template, of which each instance would have a mutex and a workspace of its own.
ffi::Error OneAtATime(const std::function<void(Workspace&)>& compute) {
  static std::mutex mutex;
  static Workspace workspace;
  std::lock_guard<std::mutex> lock(mutex);
  try {
    compute(workspace);
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  }
}

// Finds what was compiled for arrays of these shapes and options, or compiles it.
template <typename Compiled, typename F>
Compiled& Find(std::map<std::vector<Shape>, Compiled>& compiled, const std::vector<Shape>& key,
               F compile) {
  auto found = compiled.find(key);
  if (found == compiled.end()) found = compiled.emplace(key, compile()).first;
  return found->second;
}

ffi::Error Convolve(Pass pass, const Array& x, const Array& kernel, const Array& y,
                    Numbers geometry) {
  return OneAtATime([&](Workspace& workspace) {
    static std::map<std::vector<Shape>, Convolution> compiled;
    Shape sizes(geometry.begin(), geometry.end());
    Shape kind{static_cast<int64_t>(pass), static_cast<int64_t>(x.element_type())};
    Find(compiled, {kind, ShapeOf(x), ShapeOf(kernel), ShapeOf(y), sizes}, [&] {
      return Convolution(pass, x, kernel, y, sizes);
    }).Run(pass, x.untyped_data(), kernel.untyped_data(), y.untyped_data(), workspace);
  });
}

ffi::Error Forward(Array x, Array kernel, Result y, Numbers geometry) {
  return Convolve(Pass::kForward, x, kernel, *y, geometry);
}

ffi::Error InputGradient(Array y, Array kernel, Result x, Numbers geometry) {
  return Convolve(Pass::kInputGradient, *x, kernel, y, geometry);
}

ffi::Error KernelGradient(Array x, Array y, Result kernel, Numbers geometry) {
  return Convolve(Pass::kKernelGradient, x, *kernel, y, geometry);
}

ffi::Error Multiply(Array a, Array b, Result result, Numbers transposed) {
  return OneAtATime([&](Workspace& workspace) {
    static std::map<std::vector<Shape>, Product> compiled;
    Shape flags(transposed.begin(), transposed.end());
    Shape kind{static_cast<int64_t>(a.element_type())};
    Find(compiled, {kind, ShapeOf(a), ShapeOf(b), flags}, [&] {
      return Product(a, b, *result, flags);
    }).Run(a.untyped_data(), b.untyped_data(), result->untyped_data(), workspace);
  });
}

auto Binding(const char* attribute) {
  return ffi::Ffi::Bind().Arg<Array>().Arg<Array>().Ret<Array>().Attr<Numbers>(attribute);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(hierjax_conv, Forward, Binding("geometry"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(hierjax_conv_input_gradient, InputGradient, Binding("geometry"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(hierjax_conv_kernel_gradient, KernelGradient, Binding("geometry"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(hierjax_product, Multiply, Binding("transposed"));

// Whether this processor multiplies bfloat16 numbers; others would be slow, or refuse.
extern "C" bool hierjax_has_bfloat16() {
  auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
  auto wanted = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);
  return (isa & wanted) == wanted;
}
