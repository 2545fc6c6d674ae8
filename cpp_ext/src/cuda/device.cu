#include "launch.cuh"

namespace druse {
namespace cuda {

bool built() { return true; }

int devices() {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        cudaGetLastError();  // no driver is an answer here, not an error to leave behind
        return 0;
    }
    return count;
}

}  // namespace cuda
}  // namespace druse
