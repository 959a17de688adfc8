// Four lanes: SSE2, NEON and their like; a compiler without such registers falls back to scalars by itself.
#define JOINTBERT_ISA portable
#define JOINTBERT_LANES 4
#if defined(__aarch64__)
#define JOINTBERT_ROWS 14  // 32 registers
#else
#define JOINTBERT_ROWS 5
#endif
#include "network.inl"
