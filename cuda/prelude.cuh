/* First text of every program on NVRTC: the names of cl/prelude_cl.h for CUDA C++. docs/kernels.md has the rules. Includes nothing, so that
 * libnvrtc alone is enough on the user's machine: NVRTC itself knows the vector types and the math functions.
 *
 * Compile with -default-device -std=c++17 -fmad=false --diag-error=174,1097,2361,546 (docs/kernels.md says what each one catches). */
#define DFCL_CUDA 1

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef long long dfcl_i64; /* `long` has 32 bits on Windows */
typedef unsigned long long dfcl_u64;

#define DFCL_KERNEL(X, Y, Z) extern "C" __global__ void __launch_bounds__((X) * (Y) * (Z), 1)
#define GLOBAL
#define LOCAL_ARRAY __shared__
#define LOCAL_PTR
#define CONST_TABLE static __constant__ const
#define CONST_ARG const
#define DFCL_FN __device__ __forceinline__ /* not static: an unused one is no warning */
#define DFCL_UNROLL _Pragma("unroll")
#define restrict __restrict__

/* ---- identifiers ---- */
DFCL_FN int dfcl_pick(int d, uint x, uint y, uint z) {
    return (int)(d == 0 ? x : d == 1 ? y : z);
}
#define LID(d) dfcl_pick(d, threadIdx.x, threadIdx.y, threadIdx.z)
#define GRP(d) dfcl_pick(d, blockIdx.x, blockIdx.y, blockIdx.z)
#define LSZ(d) dfcl_pick(d, blockDim.x, blockDim.y, blockDim.z)
#define GID(d) (GRP(d) * LSZ(d) + LID(d))
#define BARRIER() __syncthreads()

/* ---- bits ---- */
DFCL_FN float as_float(uint a) {
    return __uint_as_float(a);
}
DFCL_FN float as_float(int a) {
    return __int_as_float(a);
}
DFCL_FN uint as_uint(float a) {
    return __float_as_uint(a);
}
DFCL_FN uint as_uint(int a) {
    return (uint)a;
}
DFCL_FN int as_int(float a) {
    return __float_as_int(a);
}
DFCL_FN int as_int(uint a) {
    return (int)a;
}
DFCL_FN uint mul_hi(uint a, uint b) {
    return __umulhi(a, b);
}
DFCL_FN uint rotate(uint a, uint n) {
    return __funnelshift_l(a, a, n);
}
DFCL_FN int popcount(uint a) {
    return __popc(a);
}
DFCL_FN int clz(uint a) {
    return __clz((int)a);
}

/* ---- 16-bit storage: ushort in memory, f32 in registers ---- */
DFCL_FN float dfcl_h2f(ushort h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
DFCL_FN ushort dfcl_f2h(float f) {
    ushort h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

/* ---- limits ---- */
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define INT_MAX 2147483647
#define UINT_MAX 0xffffffffu
#define M_PI_F 3.14159274101257f

/* ---- scalar functions that CUDA names otherwise ---- */
DFCL_FN float mad(float a, float b, float c) {
    return __fmaf_rn(a, b, c);
}
DFCL_FN float clamp(float x, float lo, float hi) {
    return fminf(fmaxf(x, lo), hi);
}
DFCL_FN int clamp(int x, int lo, int hi) {
    return x < lo ? lo : x > hi ? hi : x;
}
DFCL_FN float mix(float a, float b, float t) {
    return a + (b - a) * t;
}
DFCL_FN float select(float no, float yes, int which) {
    return which ? yes : no;
}
DFCL_FN int select(int no, int yes, int which) {
    return which ? yes : no;
}
DFCL_FN float native_exp(float x) {
    return __expf(x);
}
DFCL_FN float native_exp2(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
DFCL_FN float native_log(float x) {
    return __logf(x);
}
DFCL_FN float native_log2(float x) {
    return __log2f(x);
}
DFCL_FN float native_sin(float x) {
    return __sinf(x);
}
DFCL_FN float native_cos(float x) {
    return __cosf(x);
}
DFCL_FN float native_rsqrt(float x) {
    float r;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
DFCL_FN float native_sqrt(float x) {
    float r;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
DFCL_FN float native_recip(float x) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
DFCL_FN float native_divide(float a, float b) {
    return __fdividef(a, b);
}

/* ---- vectors: NVRTC's own types, which have no constructor. A cast literal `(float4)(a, b, c, d)` therefore does not compile. ---- */
#define F2(a, b) make_float2(a, b)
#define F4(a, b, c, d) make_float4(a, b, c, d)
#define F4S(a) dfcl_splat4(a)
#define I4(a, b, c, d) make_int4(a, b, c, d)
#define U4(a, b, c, d) make_uint4(a, b, c, d)

DFCL_FN float4 dfcl_splat4(float a) {
    return make_float4(a, a, a, a);
}

#define DFCL_OP2(T, E, op)                                                                                                         \
    DFCL_FN T operator op(T a, T b) {                                                                                              \
        return make_##T(a.x op b.x, a.y op b.y);                                                                                   \
    }                                                                                                                              \
    DFCL_FN T operator op(T a, E b) {                                                                                              \
        return make_##T(a.x op b, a.y op b);                                                                                       \
    }                                                                                                                              \
    DFCL_FN T operator op(E a, T b) {                                                                                              \
        return make_##T(a op b.x, a op b.y);                                                                                       \
    }                                                                                                                              \
    DFCL_FN T &operator op##=(T &a, T b) {                                                                                         \
        return a = a op b;                                                                                                         \
    }                                                                                                                              \
    DFCL_FN T &operator op##=(T &a, E b) {                                                                                         \
        return a = a op b;                                                                                                         \
    }
#define DFCL_OP4(T, E, op)                                                                                                         \
    DFCL_FN T operator op(T a, T b) {                                                                                              \
        return make_##T(a.x op b.x, a.y op b.y, a.z op b.z, a.w op b.w);                                                           \
    }                                                                                                                              \
    DFCL_FN T operator op(T a, E b) {                                                                                              \
        return make_##T(a.x op b, a.y op b, a.z op b, a.w op b);                                                                   \
    }                                                                                                                              \
    DFCL_FN T operator op(E a, T b) {                                                                                              \
        return make_##T(a op b.x, a op b.y, a op b.z, a op b.w);                                                                   \
    }                                                                                                                              \
    DFCL_FN T &operator op##=(T &a, T b) {                                                                                         \
        return a = a op b;                                                                                                         \
    }                                                                                                                              \
    DFCL_FN T &operator op##=(T &a, E b) {                                                                                         \
        return a = a op b;                                                                                                         \
    }
DFCL_OP2(float2, float, +)
DFCL_OP2(float2, float, -)
DFCL_OP2(float2, float, *)
DFCL_OP2(float2, float, /)
DFCL_OP4(float4, float, +)
DFCL_OP4(float4, float, -)
DFCL_OP4(float4, float, *)
DFCL_OP4(float4, float, /)
DFCL_OP4(int4, int, +)
DFCL_OP4(int4, int, -)
DFCL_OP4(int4, int, *)
DFCL_OP4(uint4, uint, +)
DFCL_OP4(uint4, uint, -)
DFCL_OP4(uint4, uint, *)
DFCL_OP4(uint4, uint, &)
DFCL_OP4(uint4, uint, |)
DFCL_OP4(uint4, uint, ^)
DFCL_OP4(uint4, uint, >>)
DFCL_OP4(uint4, uint, <<)
#undef DFCL_OP2
#undef DFCL_OP4
DFCL_FN float2 operator-(float2 a) {
    return make_float2(-a.x, -a.y);
}
DFCL_FN float4 operator-(float4 a) {
    return make_float4(-a.x, -a.y, -a.z, -a.w);
}

#define DFCL_MAP1(f)                                                                                                               \
    DFCL_FN float2 f(float2 a) {                                                                                                   \
        return make_float2(f(a.x), f(a.y));                                                                                        \
    }                                                                                                                              \
    DFCL_FN float4 f(float4 a) {                                                                                                   \
        return make_float4(f(a.x), f(a.y), f(a.z), f(a.w));                                                                        \
    }
#define DFCL_MAP2(f)                                                                                                               \
    DFCL_FN float2 f(float2 a, float2 b) {                                                                                         \
        return make_float2(f(a.x, b.x), f(a.y, b.y));                                                                              \
    }                                                                                                                              \
    DFCL_FN float4 f(float4 a, float4 b) {                                                                                         \
        return make_float4(f(a.x, b.x), f(a.y, b.y), f(a.z, b.z), f(a.w, b.w));                                                    \
    }
#define DFCL_MAP3(f)                                                                                                               \
    DFCL_FN float2 f(float2 a, float2 b, float2 c) {                                                                               \
        return make_float2(f(a.x, b.x, c.x), f(a.y, b.y, c.y));                                                                    \
    }                                                                                                                              \
    DFCL_FN float4 f(float4 a, float4 b, float4 c) {                                                                               \
        return make_float4(f(a.x, b.x, c.x), f(a.y, b.y, c.y), f(a.z, b.z, c.z), f(a.w, b.w, c.w));                                \
    }
DFCL_MAP1(exp)
DFCL_MAP1(log)
DFCL_MAP1(sqrt)
DFCL_MAP1(rsqrt)
DFCL_MAP1(fabs)
DFCL_MAP1(tanh)
DFCL_MAP1(floor)
DFCL_MAP1(rint)
DFCL_MAP1(native_exp)
DFCL_MAP1(native_rsqrt)
DFCL_MAP1(native_recip)
DFCL_MAP2(fmin)
DFCL_MAP2(fmax)
DFCL_MAP3(fma)
DFCL_MAP3(mad)
DFCL_MAP3(clamp)
DFCL_MAP3(mix)
#undef DFCL_MAP1
#undef DFCL_MAP2
#undef DFCL_MAP3
DFCL_FN float dot(float2 a, float2 b) {
    return a.x * b.x + a.y * b.y;
}
DFCL_FN float dot(float4 a, float4 b) {
    return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}

DFCL_FN float4 as_float4(uint4 a) {
    return make_float4(as_float(a.x), as_float(a.y), as_float(a.z), as_float(a.w));
}
DFCL_FN uint4 as_uint4(float4 a) {
    return make_uint4(as_uint(a.x), as_uint(a.y), as_uint(a.z), as_uint(a.w));
}
DFCL_FN float4 convert_float4(int4 a) {
    return make_float4((float)a.x, (float)a.y, (float)a.z, (float)a.w);
}
DFCL_FN float4 convert_float4(uint4 a) {
    return make_float4((float)a.x, (float)a.y, (float)a.z, (float)a.w);
}
/* Saturating, to nearest even; NaN gives 0. */
DFCL_FN uchar convert_uchar_sat_rte(float x) {
    return (uchar)__float2uint_rn(fminf(fmaxf(x, 0.0f), 255.0f));
}
DFCL_FN uchar convert_uchar_sat(float x) {
    return (uchar)__float2uint_rz(fminf(fmaxf(x, 0.0f), 255.0f));
}
DFCL_FN int convert_int_rte(float x) {
    return __float2int_rn(x);
}

/* ---- memory: element alignment only, hence scalar accesses; ld4 and st4 are the aligned fast path ---- */
#define DFCL_VLOAD(E, V2, V4)                                                                                                      \
    DFCL_FN V2 vload2(dfcl_i64 i, const E *p) {                                                                                    \
        p += 2 * i;                                                                                                                \
        return make_##V2(p[0], p[1]);                                                                                              \
    }                                                                                                                              \
    DFCL_FN V4 vload4(dfcl_i64 i, const E *p) {                                                                                    \
        p += 4 * i;                                                                                                                \
        return make_##V4(p[0], p[1], p[2], p[3]);                                                                                  \
    }                                                                                                                              \
    DFCL_FN void vstore2(V2 v, dfcl_i64 i, E *p) {                                                                                 \
        p += 2 * i;                                                                                                                \
        p[0] = v.x, p[1] = v.y;                                                                                                    \
    }                                                                                                                              \
    DFCL_FN void vstore4(V4 v, dfcl_i64 i, E *p) {                                                                                 \
        p += 4 * i;                                                                                                                \
        p[0] = v.x, p[1] = v.y, p[2] = v.z, p[3] = v.w;                                                                            \
    }
DFCL_VLOAD(float, float2, float4)
DFCL_VLOAD(int, int2, int4)
DFCL_VLOAD(uint, uint2, uint4)
DFCL_VLOAD(ushort, ushort2, ushort4)
DFCL_VLOAD(uchar, uchar2, uchar4)
#undef DFCL_VLOAD
#define dfcl_ld4(p) (*(const float4 *)(p))
#define dfcl_st4(p, v) (*(float4 *)(p) = (v))
#define dfcl_ldu4(p) vload4(0, (p))
#define dfcl_stu4(p, v) vstore4((v), 0, (p))
#define dfcl_ll4(p) (*(const float4 *)(p))
#define dfcl_ls4(p, v) (*(float4 *)(p) = (v))

/* ---- sub-groups: a warp; only groups of whole warps in one dimension may use them ---- */
#define DFCL_SG 32
DFCL_FN float dfcl_sg_sum(float v) {
    for (int o = 16; o > 0; o >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}
DFCL_FN float dfcl_sg_max(float v) {
    for (int o = 16; o > 0; o >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
    return v;
}

/* ---- what portable text must not say ----
 * Empty macros would compile and mean something else: `__local float t[64]` would give every thread its own t. */
#define __local use_LOCAL_ARRAY_or_LOCAL_PTR_not___local
#define __constant use_CONST_TABLE_or_CONST_ARG_not___constant
#define __global use_GLOBAL_not___global
#define __kernel use_DFCL_KERNEL_not___kernel
#define __private no_address_space_is_needed_here
#define double no_double_in_kernels
#define long use_dfcl_i64_not_long
