// norm_quantize as native code calls it.

#include "norm_quantize.h"
#include "shims.h"

extern "C" int dmq_norm_quantize(const NormQuantize*);

namespace {

// Whether channels lie side by side, and pixels one behind the other.
bool channels_last(const View& x) {
    int64_t expected = x.sizes[1];
    if (x.sizes[1] > 1 && x.strides[1] != 1) return false;
    for (int64_t dim = x.dims - 1; dim > 1; expected *= x.sizes[dim--])
        if (x.sizes[dim] > 1 && x.strides[dim] != expected) return false;
    return x.sizes[0] <= 1 || x.strides[0] == expected;
}

// The same values with channels last.
template <typename T>
const void* rearranged(const View& x, std::unique_ptr<char[]>& own) {
    const int64_t batch = x.sizes[0], channels = x.sizes[1], height = x.dims == 4 ? x.sizes[2] : 1;
    const int64_t width = x.sizes[x.dims - 1], down = x.dims == 4 ? x.strides[2] : 0, right = x.strides[x.dims - 1];
    own.reset(new char[batch * channels * height * width * sizeof(T)]);
    T* rows = reinterpret_cast<T*>(own.get());
#pragma omp parallel for collapse(2)
    for (int64_t b = 0; b < batch; ++b)
        for (int64_t h = 0; h < height; ++h) {
            T* to = rows + (b * height + h) * width * channels;
            for (int64_t w = 0; w < width; ++w) {
                const T* from = x.as<T>() + b * x.strides[0] + h * down + w * right;
                for (int64_t c = 0; c < channels; ++c) *to++ = from[c * x.strides[1]];
            }
        }
    return own.get();
}

const float* numbers_of(const AtenTensorHandle* tensor, int64_t count, bool& good) {
    if (!tensor) return nullptr;
    const View view(*tensor);
    good = good && view.is(aoti_torch_dtype_float32(), 1) && view.sizes[0] == count && view.strides[0] == 1;
    return view.as<float>();
}

}  // namespace

extern "C" AOTITorchError aoti_torch_cpu_norm_quantize(
    AtenTensorHandle image, const AtenTensorHandle* weight, const AtenTensorHandle* bias, int64_t groups, double eps,
    int32_t silu, AtenTensorHandle reciprocal, AtenTensorHandle zero_point, int64_t low, int64_t high,
    const int64_t* padding, int64_t paddings, AtenTensorHandle* result) {
    const View x(image), by(reciprocal), zero(zero_point);
    const int32_t single = aoti_torch_dtype_float32(), half = aoti_torch_dtype_bfloat16();
    bool good = x.good && (x.dtype == single || x.dtype == half) && (x.dims == 3 || x.dims == 4) &&
                by.is(single, 1) && zero.is(aoti_torch_dtype_int64(), 1) && zero.sizes[0] == 1;
    good = good && (paddings == 0 || (paddings == 2 && x.dims == 4 && std::min(padding[0], padding[1]) >= 0));
    good = good && 0 <= low && low <= high && high <= 255 && groups > 0 && x.sizes[1] % groups == 0;
    if (!good) return AOTI_TORCH_FAILURE;
    NormQuantize a{};
    a.batch = x.sizes[0], a.channels = x.sizes[1];
    a.height = x.dims == 4 ? x.sizes[2] : 1, a.width = x.sizes[x.dims - 1];
    a.weight = numbers_of(weight, a.channels, good);
    a.bias = numbers_of(bias, a.channels, good);
    a.by_channel = by.sizes[0] > 1;
    if (!good || (a.by_channel && (by.sizes[0] != a.channels || by.strides[0] != 1))) return AOTI_TORCH_FAILURE;
    a.reciprocal = by.as<float>(), a.zero_point = static_cast<int32_t>(*zero.as<int64_t>());
    a.groups = groups, a.eps = eps, a.silu = silu, a.low = low, a.high = high;
    a.bfloat16 = x.dtype == half, a.threads = omp_get_max_threads();
    if (a.zero_point < 0 || a.zero_point > 255) return AOTI_TORCH_FAILURE;
    if (paddings) a.padding[0] = padding[0], a.padding[1] = padding[1];
    const int64_t height = a.height + 2 * a.padding[0], width = a.width + 2 * a.padding[1], row = width * a.channels;
    std::vector<int64_t> sizes{a.batch, a.channels, height, width}, strides{height * row, 1, row, a.channels};
    if (x.dims == 3) sizes.erase(sizes.begin() + 2), strides.erase(strides.begin() + 2);
    std::unique_ptr<char[]> own;
    if (channels_last(x))
        a.x = x.data;
    else
        a.x = a.bfloat16 ? rearranged<uint16_t>(x, own) : rearranged<float>(x, own);
    AtenTensorHandle found = empty(sizes, strides, aoti_torch_dtype_uint8());
    if (!found) return AOTI_TORCH_FAILURE;
    a.output = static_cast<uint8_t*>(View(found).data);
    return finished(found, a.batch && dmq_norm_quantize(&a), result);
}
