// 5 rows of 2 vectors (5 + 5 + 4 joints) in 16 registers: 7 loads for 10 multiply-adds. 14 rows of 1 need 15 for 14,
// and were slower.
#define JOINTBERT_ISA avx2
#define JOINTBERT_LANES 8
#define JOINTBERT_ROWS 5
#include "network.inl"
