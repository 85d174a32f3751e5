// How the operators of this project are called by native code: by a C function each, without a way through Python.
//
// Types and forms are looked at, as a fault of the graph would read other memory; the call says then that it failed.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

namespace {

// A tensor's memory and form; `good` is false where torch does not tell.
struct View {
    void* data = nullptr;
    int64_t *sizes = nullptr, *strides = nullptr, dims = 0;
    int32_t dtype = 0;
    bool good = false;

    explicit View(AtenTensorHandle tensor) {
        good = !aoti_torch_get_data_ptr(tensor, &data) && !aoti_torch_get_sizes(tensor, &sizes) &&
               !aoti_torch_get_strides(tensor, &strides) && !aoti_torch_get_dim(tensor, &dims) &&
               !aoti_torch_get_dtype(tensor, &dtype);
    }

    bool is(int32_t type, int64_t count) const { return good && dtype == type && dims == count; }

    template <typename T>
    const T* as() const {
        return static_cast<const T*>(data);
    }
};

AtenTensorHandle empty(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, int32_t dtype) {
    AtenTensorHandle found = nullptr;
    const int64_t dims = static_cast<int64_t>(sizes.size());
    if (aoti_torch_empty_strided(dims, sizes.data(), strides.data(), dtype, aoti_torch_device_type_cpu(), 0, &found))
        return nullptr;
    return found;
}

// Gives a result away, or lets it go where its kernel has failed.
AOTITorchError finished(AtenTensorHandle found, int failed, AtenTensorHandle* result) {
    if (failed) {
        aoti_torch_delete_tensor_object(found);
        return AOTI_TORCH_FAILURE;
    }
    *result = found;
    return AOTI_TORCH_SUCCESS;
}

}  // namespace
