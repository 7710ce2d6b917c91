// kernels.h: the contract between TypeScript and the compiled libraries.
//
// libloam_cpu (kernels.cpp), libloam_cuda (kernels.cu) and libloam_emu (kernels.cu run on a CPU) export exactly these
// functions. ffi/symbols.ts is the same list in TypeScript; a test parses this file and compares the two.
//
// Rules
// - Every function returns 0, or a code other than 0 and leaves the text of the first failure for last_error().
//   It checks its sizes and addresses, and never throws, exits or prints; but for end_after(), whose purpose that is.
// - Work is queued on the library's own stream in call order. Only device_open(), synchronize(), mem_free(),
//   copy_to_device(), copy_to_host(), snapshot_read(), find_nonfinite(), sample() and logprobs() wait, and the first
//   product of a shape, which may be timed. On the CPU library every call has finished when it returns.
// - `act` is the type of weights, activations and their gradients: float on the CPU, bfloat16 on CUDA. Reductions,
//   gradients of weights, master weights and optimizer state are float.
// - Arguments: outputs, inputs, what the forward pass saved, then sizes. dx is the gradient of x.
// - Pointers are addresses in device memory, passed from TypeScript as bigint. HOST marks a pointer to memory of the
//   calling program (a typed array), used only outside the training step.
// - accumulate: 0 overwrites the output, 1 adds to it. Results are deterministic: same inputs, same bits, for a given
//   library, thread count, GPU, kind of attention and gemm_choices().
// - Dimensions: B batch, T time, N = B*T rows, C channels (n_embd), H query heads, K key/value heads, D head size,
//   F feed-forward width, V vocabulary. All arrays are row-major and dense unless a stride is named.
#ifndef LOAM_KERNELS_H
#define LOAM_KERNELS_H
#include <stdint.h>

#ifdef LOAM_CUDA
#include <cuda_bf16.h>
typedef __nv_bfloat16 act;
#else
typedef float act;
#endif
#define HOST

#define LOAM_ABI_VERSION 10
#define LOAM_F32 0   // element types of convert() and find_nonfinite()
#define LOAM_BF16 1
#define LOAM_AUTO 2   // of bf16_gemm in device_open()
#define LOAM_SCALE 0  // kinds of unary_forward()
#define LOAM_GELU 1
#define LOAM_GELU_TANH 2
#define LOAM_RELU_SQUARED 3
#define LOAM_SIGMOID 4
#define LOAM_SOFTCAP 5
#define LOAM_BAD_FILE 2  // code of a function that failed over a file, not over how it was called

/// Places in the step control block, 16 floats in device memory. The host writes only the learning rate.
#define CONTROL_LEARNING_RATE 0
#define CONTROL_LOSS 1         // mean loss of the step, summed over its micro-steps
#define CONTROL_GRAD_NORM 2    // L2 norm of the whole gradient before clipping
#define CONTROL_GRAD_SCALE 3   // min(1, grad_clip / norm); 0 when the update is skipped
#define CONTROL_UPDATES 4      // updates applied so far: the t of Adam's bias correction
#define CONTROL_SKIPPED 5      // updates skipped so far because loss or norm was not finite
#define CONTROL_SKIPPED_ROW 6  // of these, how many in a row up to now
#define CONTROL_BIAS1 7        // 1 - beta1^t
#define CONTROL_BIAS2 8        // 1 - beta2^t
#define CONTROL_STOPPING 9     // ranks that were asked to stop; only the host reads and writes it
#define CONTROL_SIZE 16

#ifdef __cplusplus
extern "C" {
#endif

// ---- device ----------------------------------------------------------------------------------------------------------

/// LOAM_ABI_VERSION of the library; compared with the TypeScript side before anything else is called.
int abi_version(void);

/// Copies the text of the first failure since the last call into text (at most capacity bytes, ends with 0), clears it.
int last_error(HOST char* text, int32_t capacity);

/// Opens device `index` (a GPU; 0 on a CPU) before any other function but the two above. threads: CPU threads, 0 = as many
/// as there are processors that this process may run on, or its quota of them, rounded up.
/// bf16_gemm 1: the CPU library rounds the inputs of matrix products, attention's too, to bfloat16 (sums stay float), but for
/// few rows; LOAM_AUTO: where the processor has a unit for it (AVX512-BF16); ignored on CUDA.
/// blas: what the CPU library multiplies matrices with: "builtin", its own product; "onednn", "mkl", "openblas", "blis",
/// "accelerate"; "" = the first of those that is found, or the own one for bfloat16; "auto" = the own one on processors where
/// that is as fast (AVX512-BF16 without AMX), else as "".
/// attention: which kernels a GPU uses for it: "portable", "hopper" (sm_90, H100 and H200, for head sizes 64 and 128), or "auto"
/// and "" = Hopper's where they agree with the portable ones when the device opens. The CPU has one kind.
/// Calling it again reopens with the new settings; memory stays valid.
int device_open(int32_t index, int32_t threads, int32_t bf16_gemm, HOST const char* blas, HOST const char* attention);

/// A JSON object about the open device: name, library ("cpu", "cuda" or "emu"), act ("f32" or "bf16"), isa, threads, blas
/// (name and path or version), and for a GPU arch, compiled_archs, multiprocessors, attention (which kernels, and why), uuid
/// ("GPU-..." as nvidia-smi writes it), driver, runtime. Ends with 0.
int device_info(HOST char* json, int32_t capacity);

/// bytes[0] allocated now, bytes[1] peak of that, bytes[2] free on the device, bytes[3] total on the device. On a CPU what
/// is free is what mem_alloc() would give: of the limits of host_limits(), less what was given and is not touched yet.
int device_memory(HOST int64_t* bytes);

/// What this process may use of the machine: limits[0] bytes of memory left, limits[1] bytes in all, limits[2] CPUs by the
/// quotas of its cgroups, rounded up, 0 = no quota. source: what sets limits[1], the machine or a cgroup (at most capacity
/// bytes, ends with 0). root is put before /proc and the cgroups' directories: "" but in tests.
int host_limits(HOST int64_t* limits, HOST char* source, int32_t capacity, HOST const char* root);

/// Ends the process ms from now with an exit code, after it has written text (less than 1024 bytes) to stderr, whatever its
/// threads wait for by then, unless it is called again before; 0 = never. It uses SIGALRM.
int end_after(int64_t ms, int32_t code, HOST const char* text);

/// *flops = FLOP/s that no product on the open device exceeds: on a CPU what its threads do in registers alone, multiplying
/// and adding, the best of 15 times 2 ms; 0 on a GPU, whose maker says it. how: what was measured, in words (at most capacity
/// bytes, ends with 0).
int device_peak(HOST double* flops, HOST char* how, int32_t capacity);

/// *stream = the cudaStream_t that work is queued on, for libraries that queue work of their own, such as NCCL; 0 on a CPU.
int device_stream(HOST uint64_t* stream);

/// mark() queues a mark, 0 < at < MARKS; the same number again replaces it. mark_ms(): *ms = milliseconds from one mark to
/// another, both of which work has passed.
#define MARKS 16384
int mark(int32_t at);
int mark_ms(HOST float* ms, int32_t from, int32_t to);

/// *stream = a second stream, for work beside: side_wait() lets it wait for a mark, side_mark() queues one in it, and side_join()
/// lets the library's own stream wait for that. 0 on a CPU, where all three do nothing.
int side_stream(HOST uint64_t* stream);
int side_wait(int32_t at);
int side_mark(int32_t at);
int side_join(int32_t at);

/// Waits until all queued work is done and reports its failures.
int synchronize(void);

// ---- memory ----------------------------------------------------------------------------------------------------------

/// Device memory, filled with zeros, aligned to 256 bytes. *address receives the address.
int mem_alloc(HOST uint64_t* address, int64_t bytes);
int mem_free(void* address);

/// Host memory that the device can copy from without staging (pinned); on the CPU library ordinary memory.
int host_alloc(HOST uint64_t* address, int64_t bytes);

/// Between a typed array and the device; the host side may be reused when the call returns.
int copy_to_device(void* dst, HOST const void* src, int64_t bytes);
int copy_to_host(HOST void* dst, const void* src, int64_t bytes);

/// Queued copy between device (or pinned host) addresses.
int copy_async(void* dst, const void* src, int64_t bytes);

/// snapshot() queues a copy of at most SNAPSHOT_BYTES, for the host to read while later work runs. snapshot_read() waits for
/// the oldest one that has not been read, and for nothing queued behind it. At most SNAPSHOTS may wait to be read.
#define SNAPSHOT_BYTES 65536
#define SNAPSHOTS 2
int snapshot(const void* src, int64_t bytes);
int snapshot_read(HOST void* dst, int64_t bytes);

int fill_zero(void* dst, int64_t bytes);

/// dst[i] = src[i] with conversion between LOAM_F32 and LOAM_BF16 (round to nearest even).
int convert(void* dst, const void* src, int32_t dst_type, int32_t src_type, int64_t n);

/// *index = place of the first element of x that is NaN or infinite, or -1. Waits. type is LOAM_F32 or LOAM_BF16.
int find_nonfinite(HOST int64_t* index, const void* x, int32_t type, int64_t n);

// ---- frozen weights of two bytes beside float activations, on a CPU ----------------------------------------------------------

/// embedding_forward(), linear_forward() and linear_dgrad() whose weight is bfloat16 whatever act is. They give what a float
/// weight of these values gives, to the bit where the inputs of products are rounded, and in any case up to 8 rows forward.
int embedding_forward_bf16(act* out, const int32_t* ids, const void* weight, int32_t N, int32_t V, int32_t C);
int linear_forward_bf16(act* out, const act* x, const void* weight, const act* residual, int32_t N, int32_t IN, int32_t OUT);
int linear_dgrad_bf16(act* dx, const act* dout, const void* weight, int32_t N, int32_t IN, int32_t OUT, int32_t accumulate);

// ---- random numbers --------------------------------------------------------------------------------------------------

/// dst[i] = std * z, z standard normal from Philox 4x32-10 with key = seed and counter = (offset + i) / 4, Box-Muller on
/// the four words. The same (seed, offset + i) gives the same bits in every library up to the last bits of log and cos.
int init_normal(float* dst, int64_t n, float std, uint64_t seed, uint64_t offset);
int init_constant(float* dst, int64_t n, float value);

// ---- token data ------------------------------------------------------------------------------------------------------

/// Opens a file of tokens. token_bytes 2 or 4, or 1 for a mask; header_bytes are skipped. info[0] = handle, info[1] = tokens.
/// It is read window by window, not mapped: a file that is cut short is an error, where a mapping ends the process.
int data_open(HOST int64_t* info, HOST const char* path, int32_t header_bytes, int32_t token_bytes);
int data_close(int32_t handle);

/// x[t] = token[start + t], y[t] = token[start + t + 1] for t < T, widened to int32. x and y are in host_alloc() memory.
/// Fails if the window leaves the file. Both return LOAM_BAD_FILE where the file is at fault (the text names it): one that
/// cannot be read, that changed since it was opened, or with a token >= V. One that was replaced by renaming or removed
/// goes on being read as it was.
int data_gather(int32_t* x, int32_t* y, int32_t handle, int64_t start, int32_t T, int32_t V);

/// The same window in the mask of a shard of conversations, which has a byte for each token: y[t] = -1, no loss, unless bit 0 of
/// that of token start + t + 1 is set. starts[t] = the last place up to t whose byte has bit 1, where a conversation begins; 0
/// where there is none. starts may be 0. Fails as data_gather().
int data_mask(int32_t* y, int32_t* starts, int32_t handle, int64_t start, int32_t T);

/// starts[t] = place in x (T) of the first token of the document that token t is in: the last `bos` up to t, 0 where there is none,
/// as the document began before. Both are in host_alloc() memory. This is a row of the `starts` (B, T) of the functions below,
/// which trust it: it never falls along a row, and none is above its t.
int document_starts(int32_t* starts, const int32_t* x, int32_t T, int32_t bos);

// ---- embedding: rows of a table ----------------------------------------------------------------------------------------

/// out (N, C) = weight (V, C) at ids (N).
int embedding_forward(act* out, const int32_t* ids, const act* weight, int32_t N, int32_t V, int32_t C);

/// dweight (V, C): row v is the sum of the rows of dout (N, C) whose id is v, since each of these is a copy of it.
int embedding_backward(float* dweight, const act* dout, const int32_t* ids, int32_t N, int32_t V, int32_t C,
                       int32_t accumulate);

// ---- rmsnorm: out = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps), over the last axis ------------------------------

/// out, x (N, C); weight (C); rstd (N) is kept for backward. Rows of x, out and their gradients stand `group` at a time side
/// by side, each group `stride` elements after the one before: 1 and C for a dense array, H and (H + 2K) * D for the queries
/// of qkv as rows of D.
int rmsnorm_forward(act* out, float* rstd, const act* x, const act* weight, int32_t N, int32_t C, int32_t group,
                    int32_t stride, float eps);

/// With n = x * rstd and g = dout * weight, the gradient of n:
///   dweight = sum over rows of dout * n
///   dx = rstd * (g - n * mean(g * n)): d n_i / dx_j is rstd for i = j, less n_i n_j rstd / C, as rstd has every x_j in it
/// out, where not 0, receives the forward result again (so that it need not be kept for the next wgrad). dx may be dout where
/// it is not added to.
int rmsnorm_backward(act* dx, float* dweight, act* out, const act* dout, const act* x, const act* weight,
                     const float* rstd, int32_t N, int32_t C, int32_t group, int32_t stride, int32_t accumulate_dx,
                     int32_t accumulate_dweight);

// ---- layernorm: out = (x - mean) * rstd * weight + bias, rstd = 1 / sqrt(variance + eps), over the last axis --------------

/// out, x (N, C); weight, bias (C); stats (N, 2), the mean and rstd of each row, is kept for backward.
int layernorm_forward(act* out, float* stats, const act* x, const act* weight, const act* bias, int32_t N, int32_t C,
                      float eps);

/// With n = (x - mean) * rstd and g = dout * weight, the gradient of n:
///   dbias = sum over rows of dout, dweight = sum over rows of dout * n
///   dx = rstd * (g - mean(g) - n * mean(g * n)): the mean holds every x of the row, and so does rstd
/// dx may be dout.
int layernorm_backward(act* dx, float* dweight, float* dbias, const act* dout, const act* x, const act* weight,
                       const float* stats, int32_t N, int32_t C, int32_t accumulate_dweight, int32_t accumulate_dbias);

// ---- rope: rotates pairs (j, j + D/2) of each query and key head, in place -----------------------------------------------

/// qkv (B, T, H + 2K, D): H query heads, K key heads (both rotated), K value heads (left alone).
/// table (rows, D): row p holds cos(p * theta^(-2j/D)) for j < D/2, then the sines. Row of token t is pos + t, less
/// starts[b][t] where starts is not 0; rows >= pos+T.
/// inverse 1 rotates back: the backward pass of the same op, applied to dqkv, as a rotation's transpose is its inverse.
int rope(act* qkv, const float* table, const int32_t* starts, int32_t B, int32_t T, int32_t pos, int32_t H, int32_t K,
         int32_t D, int32_t inverse);

// ---- attention: causal, grouped-query, scale 1/sqrt(D), online softmax -----------------------------------------------------

/// out (B, T, H, D); lse (B, H, T) natural log of the softmax denominator, kept for backward; qkv as in rope(). Query t sees the
/// keys from starts[b][t] to t, from 0 where starts is 0: those of its document.
int attention_forward(act* out, float* lse, const act* qkv, const int32_t* starts, int32_t B, int32_t T, int32_t H, int32_t K,
                      int32_t D);

/// With S = q k^T * scale, P = softmax(S) = exp(S - lse), out = P v, of each query head and the key/value head it reads:
///   dv = P^T dout, dP = dout v^T
///   dS = P * (dP - delta), delta = rowsum(P * dP): one score more takes from all others of its row. As out = P v, delta is
///   rowsum(dout * out), and no row of dP has to be whole
///   dq = dS k * scale, dk = dS^T q * scale; dk and dv are summed over the query heads that read them
/// Overwrites all of dqkv. delta (B, H, T) is scratch.
int attention_backward(act* dqkv, float* delta, const act* dout, const act* out, const float* lse, const act* qkv,
                       const int32_t* starts, int32_t B, int32_t T, int32_t H, int32_t K, int32_t D);

/// Generation: appends the keys and values of T new tokens at position pos to the caches (B, K, T_max, D) and attends from
/// the new queries to everything cached so far, which is one document. out (B, T, H, D).
int attention_cached(act* out, act* k_cache, act* v_cache, const act* qkv, int32_t B, int32_t T, int32_t pos,
                     int32_t T_max, int32_t H, int32_t K, int32_t D);

// ---- linear: out = x weight^T (+ residual) ------------------------------------------------------------------------------

/// x (N, IN), weight (OUT, IN), out and residual (N, OUT). residual may be 0, or out.
int linear_forward(act* out, const act* x, const act* weight, const act* residual, int32_t N, int32_t IN, int32_t OUT);

/// out_o = sum over i of x_i * weight_oi: dx = dout weight, dweight = dout^T x; the gradient of the residual is dout.
int linear_dgrad(act* dx, const act* dout, const act* weight, int32_t N, int32_t IN, int32_t OUT, int32_t accumulate);
int linear_wgrad(float* dweight, const act* dout, const act* x, int32_t N, int32_t IN, int32_t OUT, int32_t accumulate);

/// out (N, N) = alpha x x^T + beta add, which is symmetric, as add (N, N) should be: a CPU multiplies for one half of it. x is
/// (N, C), or (C, N) where transposed: then x^T x. add may be 0; out may be neither x nor add.
int gram(act* out, const act* x, const act* add, int32_t N, int32_t C, int32_t transposed, float alpha, float beta);

/// Which algorithm a GPU multiplies with, chosen at the first product of a shape: another one adds up in another order. lines =
/// a line for each shape so far whose candidates are timed (at most capacity bytes, ends with 0); "" on a CPU. They hold for
/// GPUs of one name and one version of the BLAS.
int gemm_choices(HOST char* lines, int32_t capacity);

/// Takes such lines for shapes that have no choice yet. *refused = of how many nothing is taken, because they are no such line
/// or the BLAS does not run them. times: 1 shapes without a choice are timed, as before the first call; 0 none is from here on,
/// but takes what the BLAS offers first, which is the same in every process. A CPU has nothing to choose.
int gemm_choose(HOST int32_t* refused, HOST const char* lines, int32_t times);

// ---- swiglu: h = silu(gate) * up ------------------------------------------------------------------------------------------

/// h (N, F); gate_up (N, 2F): row = F gates, then F ups.
int swiglu_forward(act* h, const act* gate_up, int32_t N, int32_t F);

/// With s = sigmoid(gate): dup = dh * gate * s, dgate = dh * up * s * (1 + gate * (1 - s)), as s' = s * (1 - s).
/// dgate_up (N, 2F) may be gate_up itself. h, where not 0, receives the forward result again.
int swiglu_backward(act* dgate_up, act* h, const act* dh, const act* gate_up, int32_t N, int32_t F);

// ---- add ------------------------------------------------------------------------------------------------------------------

/// out = a + b; out may be a or b.
int add(act* out, const act* a, const act* b, int64_t n);

// ---- element-wise: one value, or two, of which each output follows ---------------------------------------------------------

/// out = f(x), element by element; out may be x. The kinds, p being `parameter`:
///   LOAM_SCALE         p * x
///   LOAM_GELU          x * Phi(x), Phi the normal distribution: PyTorch's gelu(x)
///   LOAM_GELU_TANH     x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2: PyTorch's gelu(x, approximate="tanh")
///   LOAM_RELU_SQUARED  max(x, 0)^2
///   LOAM_SIGMOID       1 / (1 + e^-x)
///   LOAM_SOFTCAP       p * tanh(x / p), between -p and p
int unary_forward(act* out, const act* x, int32_t kind, float parameter, int64_t n);

/// dx = dout * f'(x); dx may be dout.
int unary_backward(act* dx, const act* dout, const act* x, int32_t kind, float parameter, int64_t n);

/// out = a * b; out may be a or b. The gradient of a is dout * b, and that of b dout * a: the same function.
int mul(act* out, const act* a, const act* b, int64_t n);

/// out = x / (1 - rate) with probability 1 - rate, else 0; out may be x. It is 0 where random word i % 4 of Philox 4x32-10
/// with this key and counter i / 4 is below rate * 2^32, in every library. Backward is the same function on dout.
int dropout(act* out, const act* x, int64_t n, float rate, uint64_t key);

// ---- rows and columns ------------------------------------------------------------------------------------------------------

/// out (N, C) = x + bias (C), added to each row; out may be x.
int bias_forward(act* out, const act* x, const act* bias, int32_t N, int32_t C);

/// dbias (C) = the sum of the rows of dout (N, C); the gradient of x is dout.
int bias_backward(float* dbias, const act* dout, int32_t N, int32_t C, int32_t accumulate);

/// dst (N, columns) = src, of rows dst_stride and src_stride apart: cuts columns out of a wider array, or puts them into one.
int copy_columns(act* dst, const act* src, int32_t N, int32_t columns, int32_t dst_stride, int32_t src_stride,
                 int32_t accumulate);

/// out (N, C) = e^x / sum(e^x) over each row; out may be x.
int softmax_forward(act* out, const act* x, int32_t N, int32_t C);

/// dx = out * (dout - sum(out * dout)): what one value of a row gains the others lose. dx may be dout.
int softmax_backward(act* dx, const act* dout, const act* out, int32_t N, int32_t C);

/// out (N) = lse (N) = log(sum(e^x)) over the first V of V_stride columns; lse, in float, is kept for backward.
int logsumexp_forward(act* out, float* lse, const act* x, int32_t N, int32_t V, int32_t V_stride);

/// dx (N, V_stride) = dout (N) * e^(x - lse), the softmax; 0 in columns from V on. dx may be x.
int logsumexp_backward(act* dx, const act* dout, const float* lse, const act* x, int32_t N, int32_t V,
                       int32_t V_stride);

// ---- cross entropy: softmax and loss, the gradient in place of the logits -----------------------------------------------

/// logits (N, V_stride), columns >= V are padding: they take no part and get gradient 0. targets (N), < 0 = no loss.
/// losses (N) = log(sum exp) - logit[target]. backward 1: logits become (softmax - onehot) * grad_scale; 0: left as they are.
int cross_entropy(act* logits, float* losses, const int32_t* targets, int32_t N, int32_t V, int32_t V_stride,
                  float grad_scale, int32_t backward);

/// *out = (accumulate ? *out : 0) + scale * sum(x), in a fixed order.
int sum_scaled(float* out, const float* x, int32_t n, float scale, int32_t accumulate);

// ---- sampling: from logits to tokens --------------------------------------------------------------------------------------

/// Waits. *id = a token drawn from logits (V): at temperature 0 the likeliest, else one of the top_k likeliest (0: of all),
/// of these only so many that they make up top_p, in (0, 1], of their probability. Of equal logits the earlier one counts as
/// the likelier. random, 32 bits, chooses: the first token, the likeliest first, at which the running sum of probabilities
/// exceeds random / 2^32 of their sum. -1 where a logit is not finite.
int sample(HOST int32_t* id, const act* logits, int32_t V, double temperature, int32_t top_k, double top_p,
           uint32_t random);

/// Waits. For each row of logits (N, V_stride), of which the first V columns count: values (N, 1 + n) = the natural logarithms
/// of the probabilities of targets (N), 0 where that is < 0, and of the n likeliest tokens, which are ids (N, n).
int logprobs(HOST float* values, HOST int32_t* ids, const act* logits, HOST const int32_t* targets, int32_t N, int32_t V,
             int32_t V_stride, int32_t n);

// ---- optimizer: everything reads its scalars from the control block ----------------------------------------------------------

/// *sumsq = (accumulate ? *sumsq : 0) + sum(grad^2), in a fixed order.
int grad_sumsq(double* sumsq, const float* grad, int64_t n, int32_t accumulate);

/// Fills grad_norm, grad_scale, bias1, bias2 and the counters of the control block from *sumsq and control's loss.
/// grad_clip 0 = no clipping. A loss that is not finite makes this update a skipped one, and so does a norm whose square
/// after clipping is not finite (Adam's second moments would not be) or which clipping would round to 0.
int step_control(float* control, const double* sumsq, float grad_clip, float beta1, float beta2);

/// The float32 master of a weight, whole: weight is master rounded to act, and rest (n) with ties (a bit of each, n / 8
/// bytes, rounded up) is what that leaves. split takes it apart, join gives its bits back; a NaN stays a NaN, though
/// maybe another. On the CPU a weight is its own master: rest and ties are not used and may be 0.
int split_master(act* weight, uint16_t* rest, uint8_t* ties, const float* master, int64_t n);
int join_master(float* master, const act* weight, const uint16_t* rest, const uint8_t* ties, int64_t n);

/// AdamW with decoupled weight decay over a flat range: master -= lr * (m^ / (sqrt(v^) + eps) + weight_decay * master),
/// master being kept as split_master() does. A skipped update changes nothing.
int adamw(act* weight, uint16_t* rest, uint8_t* ties, float* m, float* v, const float* grad, const float* control,
          int64_t n, float beta1, float beta2, float eps, float weight_decay);

/// Muon's momentum over a flat range: m = momentum * m + (1 - momentum) * grad, and then in the place of grad Nesterov's look
/// ahead, momentum * m + (1 - momentum) * grad; grad clipped as adamw() has it. A skipped update changes nothing.
int muon_momentum(float* m, float* grad, const float* control, int64_t n, float momentum);

/// out = x / sqrt(*sumsq), the norm of x, or / 1e-7 where it is less.
int normalize(act* out, const float* x, const double* sumsq, int64_t n);

/// master -= lr * (scale * direction + weight_decay * master), as adamw() has it. A skipped update changes nothing.
int muon_update(act* weight, uint16_t* rest, uint8_t* ties, const act* direction, const float* control, int64_t n,
                float scale, float weight_decay);

#ifdef __cplusplus
}
#endif
#endif
