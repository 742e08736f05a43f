/* First text of every program on OpenCL C 1.2: the dialect's names. cuda/prelude.cuh gives the same names to NVRTC. docs/kernels.md has
 * the rules. Build options may define DFCL_SG (sub-group size, only where cl_khr_subgroups or an equivalent is usable). */
#define DFCL_OPENCL 1
#ifdef cl_khr_fp16
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#endif
#pragma OPENCL FP_CONTRACT OFF

#if defined(DFCL_SG) && (defined(cl_khr_subgroups) || defined(__opencl_c_subgroups))
#ifdef cl_khr_subgroups
#pragma OPENCL EXTENSION cl_khr_subgroups : enable
#endif
#define dfcl_sg_sum(x) sub_group_reduce_add(x)
#define dfcl_sg_max(x) sub_group_reduce_max(x)
#else
#undef DFCL_SG
#endif

#if defined(DFCL_SG) && defined(cl_intel_required_subgroup_size)
#define DFCL_KERNEL(X, Y, Z)                                                                                                       \
    __kernel __attribute__((reqd_work_group_size(X, Y, Z))) __attribute__((intel_reqd_sub_group_size(DFCL_SG))) void
#else
#define DFCL_KERNEL(X, Y, Z) __kernel __attribute__((reqd_work_group_size(X, Y, Z))) void
#endif
#define GLOBAL __global
#define LOCAL_ARRAY __local          /* declares: LOCAL_ARRAY float tile[16][65]; at the top of a kernel only */
#define LOCAL_PTR __local            /* qualifies a pointer parameter of a helper function */
#define CONST_TABLE __constant       /* file-scope table: CONST_TABLE float t[4] = {...}; */
#define CONST_ARG __constant
#define DFCL_FN static inline
#define DFCL_UNROLL _Pragma("unroll") /* before a loop of constant length over a private array, which then stays in registers */

typedef long dfcl_i64;
typedef ulong dfcl_u64;

#define F2(a, b) ((float2)(a, b))
#define F4(a, b, c, d) ((float4)(a, b, c, d))
#define F4S(a) ((float4)(a))
#define I4(a, b, c, d) ((int4)(a, b, c, d))
#define U4(a, b, c, d) ((uint4)(a, b, c, d))

/* Four floats: aligned to 16 bytes (ld4, st4: the fast path; the address must be a multiple of 16) or to 4 (ldu4, stu4). */
#define dfcl_ld4(p) (*(const GLOBAL float4 *)(p))
#define dfcl_st4(p, v) (*(GLOBAL float4 *)(p) = (v))
#define dfcl_ldu4(p) vload4(0, (p))
#define dfcl_stu4(p, v) vstore4((v), 0, (p))
/* The same in local memory, aligned. */
#define dfcl_ll4(p) (*(LOCAL_PTR const float4 *)(p))
#define dfcl_ls4(p, v) (*(LOCAL_PTR float4 *)(p) = (v))

/* 16-bit storage: ushort in memory, f32 in registers. */
DFCL_FN float dfcl_h2f(ushort h) {
    return vload_half(0, (const __private half *)&h);
}
DFCL_FN ushort dfcl_f2h(float f) {
    ushort h;
    vstore_half_rte(f, 0, (__private half *)&h);
    return h;
}

/* Identifiers as int: all launches stay below 2^31 items a dimension. */
#define LID(d) ((int)get_local_id(d))
#define GRP(d) ((int)get_group_id(d))
#define GID(d) ((int)get_global_id(d))
#define LSZ(d) ((int)get_local_size(d))
#define BARRIER() barrier(CLK_LOCAL_MEM_FENCE)
