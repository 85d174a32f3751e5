// int8_attention as native code calls it.

#include "int8_attention.h"
#include "shims.h"

extern "C" int dmq_int8_attention(const Attention*);

namespace {

// Rows of bytes that lie side by side, copied into `own` where they do not.
const uint8_t* rows_of(const View& x, int64_t* strides, std::vector<uint8_t>& own) {
    std::copy(x.strides, x.strides + 3, strides);
    const int64_t* n = x.sizes;
    if (x.strides[3] == 1 || n[3] == 1) return x.as<uint8_t>();
    own.resize(n[0] * n[1] * n[2] * n[3]);
    uint8_t* to = own.data();
    for (int64_t b = 0; b < n[0]; ++b)
        for (int64_t h = 0; h < n[1]; ++h)
            for (int64_t r = 0; r < n[2]; ++r) {
                const uint8_t* from = x.as<uint8_t>() + b * x.strides[0] + h * x.strides[1] + r * x.strides[2];
                for (int64_t i = 0; i < n[3]; ++i) *to++ = from[i * x.strides[3]];
            }
    strides[2] = n[3], strides[1] = n[2] * n[3], strides[0] = n[1] * strides[1];
    return own.data();
}

// float32 to bfloat16, halves to even.
void to_bfloat16(const float* from, uint16_t* to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, from + i, 4);
        const bool number = (bits & 0x7fffffffu) <= 0x7f800000u;
        to[i] = static_cast<uint16_t>(number ? (bits + 0x7fffu + (bits >> 16 & 1)) >> 16 : 0x7fc0u);
    }
}

}  // namespace

extern "C" AOTITorchError aoti_torch_cpu_int8_attention(
    AtenTensorHandle query, AtenTensorHandle key, AtenTensorHandle value, AtenTensorHandle scales,
    AtenTensorHandle zero_points, double scale, int64_t smallest, int64_t largest, const int32_t* output_dtype,
    AtenTensorHandle* result) {
    const View q(query), k(key), v(value), s(scales), z(zero_points);
    const int32_t bytes = aoti_torch_dtype_uint8(), single = aoti_torch_dtype_float32();
    if (!q.is(bytes, 4) || !k.is(bytes, 4) || !v.is(bytes, 4)) return AOTI_TORCH_FAILURE;
    if (!s.is(single, 1) || !z.is(aoti_torch_dtype_int64(), 1) || s.sizes[0] != 4 || z.sizes[0] != 4)
        return AOTI_TORCH_FAILURE;
    if (!std::equal(q.sizes, q.sizes + 2, k.sizes) || !std::equal(k.sizes, k.sizes + 3, v.sizes))
        return AOTI_TORCH_FAILURE;
    if (q.sizes[3] != k.sizes[3] || smallest < 0 || smallest > largest || largest > 255) return AOTI_TORCH_FAILURE;
    Attention a{};
    std::vector<uint8_t> of_query, of_key, of_value;
    a.query = rows_of(q, a.query_stride, of_query);
    a.key = rows_of(k, a.key_stride, of_key);
    a.value = rows_of(v, a.value_stride, of_value);
    a.batch = q.sizes[0], a.heads = q.sizes[1], a.queries = q.sizes[2], a.width = q.sizes[3];
    a.keys = v.sizes[2], a.value_width = v.sizes[3];
    for (int i = 0; i < 4; ++i) {
        a.scales[i] = s.as<float>()[i * s.strides[0]];
        a.zero_points[i] = static_cast<int32_t>(z.as<int64_t>()[i * z.strides[0]]);
    }
    a.scale = scale, a.smallest = smallest, a.largest = largest, a.threads = omp_get_max_threads();
    const int32_t dtype = output_dtype ? *output_dtype : single;
    if (dtype != single && dtype != aoti_torch_dtype_bfloat16()) return AOTI_TORCH_FAILURE;
    const int64_t inner = a.heads * a.value_width, count = a.batch * a.queries * inner;
    AtenTensorHandle found =
        empty({a.batch, a.heads, a.queries, a.value_width}, {a.queries * inner, a.value_width, inner, 1}, dtype);
    if (!found) return AOTI_TORCH_FAILURE;
    void* memory = View(found).data;
    std::unique_ptr<float[]> wide(dtype == single ? nullptr : new float[count]);
    a.output = dtype == single ? static_cast<float*>(memory) : wide.get();
    const int failed = dmq_int8_attention(&a);
    if (wide && !failed) to_bfloat16(wide.get(), static_cast<uint16_t*>(memory), count);
    return finished(found, failed, result);
}
