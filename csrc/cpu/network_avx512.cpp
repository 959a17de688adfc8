// 14 rows of 2 vectors are 28 of the 32 registers; a row of a panel and a broadcast joint take three more.
#define JOINTBERT_ISA avx512
#define JOINTBERT_LANES 16
#define JOINTBERT_ROWS 14
#include "network.inl"
