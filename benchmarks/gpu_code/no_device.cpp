// A CUDA runtime without a device, loaded before the real one: memory is the host's, nothing is
// copied, and launches are reported to a function and not to a card.

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace {

using OnLaunch = void (*)(const char* kernel, const unsigned* blocks, unsigned threads,
                          uint64_t shared, void** arguments);
using OnOccupancy = int (*)(const char* kernel, int threads, uint64_t shared);

OnLaunch on_launch = nullptr;
OnOccupancy on_occupancy = nullptr;
cudaDeviceProp card{};

// Of the launch that is being made.
struct Configuration {
  dim3 grid, block;
  size_t shared;
} configuration;

std::map<const void*, std::string>& kernel_names() {
  static auto* names = new std::map<const void*, std::string>;
  return *names;
}

}  // namespace

extern "C" {

void no_device_begin(int capability, int multiprocessors, uint64_t shared, OnLaunch launch,
                     OnOccupancy occupancy) {
  on_launch = launch;
  on_occupancy = occupancy;
  std::strcpy(card.name, "no device");
  card.major = capability / 10;
  card.minor = capability % 10;
  card.multiProcessorCount = multiprocessors;
  card.sharedMemPerMultiprocessor = shared;
  card.sharedMemPerBlockOptin = shared - 1024;
  card.sharedMemPerBlock = 48 << 10;
  card.totalGlobalMem = size_t{1} << 36;
  card.warpSize = 32;
  card.maxThreadsPerBlock = 1024;
  card.maxThreadsPerMultiProcessor = 1536;
}

void** __cudaRegisterFatBinary(void*) { return nullptr; }
void __cudaRegisterFatBinaryEnd(void**) {}
char __cudaInitModule(void**) { return 0; }
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host_function, char*, const char* name, int, void*,
                            void*, void*, void*, int*) {
  kernel_names()[host_function] = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t) {
  return configuration = {grid, block, shared}, 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  return *static_cast<cudaStream_t*>(stream) = nullptr, cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host_function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host_function));
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments,
                             size_t shared, cudaStream_t) {
  const unsigned blocks[] = {grid.x, grid.y, grid.z};
  if (on_launch != nullptr) {
    on_launch(kernel_names()[kernel].c_str(), blocks, block.x * block.y * block.z, shared,
              arguments);
  }
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel,
                                void** arguments) {
  return cudaLaunchKernel(kernel, config->gridDim, config->blockDim, arguments,
                          config->dynamicSmemBytes, config->stream);
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* kernel,
                                                                   int threads, size_t shared,
                                                                   unsigned) {
  *blocks = on_occupancy(kernel_names()[kernel].c_str(), threads, shared);
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel,
                                                          int threads, size_t shared) {
  *blocks = on_occupancy(kernel_names()[kernel].c_str(), threads, shared);
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  return *properties = card, cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return *value = card.multiProcessorCount, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = static_cast<int>(card.sharedMemPerBlockOptin), cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return *value = static_cast<int>(card.sharedMemPerMultiprocessor), cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = card.major, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = card.minor, cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  return *attributes = cudaFuncAttributes{}, cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void*) {
  *attributes = cudaPointerAttributes{};
  attributes->type = cudaMemoryTypeDevice;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, size_t size) {
  *memory = std::aligned_alloc(512, (size + 511) / 512 * 512);
  return *memory == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  return *available = *total = card.totalGlobalMem, cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return *least = *greatest = 0, cudaSuccess;
}

// What has no effect here.
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
cudaError_t cudaMemcpyAsync(void*, const void*, size_t, cudaMemcpyKind, cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

// torch asks the driver whether a context exists. This library bears the driver's name.
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  return *flags = 0, *active = 1, 0;
}
int no_driver_function() { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = reinterpret_cast<void*>(no_driver_function);
  if (result != nullptr) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

}  // extern "C"
