// What every 64-bit machine has: SSE2 or NEON.
#define OVERLOCK_ISA baseline
#define OVERLOCK_VECTOR_BYTES 16
#include "depthwise_tables_impl.h"
#include "map_kernels_impl.h"
#include "row_kernels_impl.h"
