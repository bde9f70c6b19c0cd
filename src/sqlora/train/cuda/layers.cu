// What stands between a layer's matrix products.
//
// An adapter's rank is one of CHUNK. Of its two factors `first` is (rank, inputs) and `second` (rank, outputs); `low`
// (tokens, rank) is what is between them, `reduced` its gradient.

const int TOKENS = 2;  // rows that a block takes, so that it reads an adapter half as often
const int CHUNK = 8;   // columns of an adapter that a thread takes at once
const int MOST_RANK = 32;
const int WARPS = 16;  // of a block of those kernels that count on it

// Few enough registers that two such blocks are on a multiprocessor.
#undef BOUNDS
#define BOUNDS __launch_bounds__(32 * WARPS, 2)

// Of each value the sum of all threads of a block, for each of them.
template <int COUNT> __device__ inline void sum_of_block(float* values) {
    __shared__ float parts[COUNT][WARPS];
#pragma unroll
    for (int one = 0; one < COUNT; one++) {
        values[one] = sum_of_warp(values[one]);
        if (threadIdx.x % 32 == 0) parts[one][threadIdx.x / 32] = values[one];
    }
    __syncthreads();
#pragma unroll
    for (int one = 0; one < COUNT; one++) {
        const int lane = threadIdx.x % 32;
        values[one] = sum_of_warp(lane < WARPS ? parts[one][lane] : 0);
    }
}

// The tokens of a block; the last of all stands for those behind it.
struct Block {
    int first, tokens;
    __device__ Block(int tokens) : first(blockIdx.x * TOKENS), tokens(tokens) {}
    __device__ Size row(int number) const { return min(first + number, tokens - 1); }
    __device__ bool has(int number) const { return first + number < tokens; }
};

// A block's rows @ matrix.T -> out (tokens, rank); all its threads have written rows (tokens, width).
__device__ inline void reduce_rows(
    const Block& block, const T* rows, const T* matrix, T* out, int width, int rank
) {
    __shared__ float parts[TOKENS * CHUNK][WARPS];
    for (int start = 0; start < rank; start += CHUNK) {
        float sums[TOKENS][CHUNK] = {};
        __syncthreads();
        for (int column = threadIdx.x * 4; column < width; column += blockDim.x * 4) {
            Four inputs[TOKENS];
#pragma unroll
            for (int token = 0; token < TOKENS; token++) inputs[token] = four(rows + block.row(token) * width + column);
#pragma unroll
            for (int one = 0; one < CHUNK; one++) {
                const Four factors = four(matrix + Size(start + one) * width + column);
#pragma unroll
                for (int place = 0; place < 4; place++) {
                    const float factor = get(factors.at[place]);
#pragma unroll
                    for (int token = 0; token < TOKENS; token++)
                        sums[token][one] += factor * get(inputs[token].at[place]);
                }
            }
        }
#pragma unroll
        for (int number = 0; number < TOKENS * CHUNK; number++) {
            const float sum = sum_of_warp(sums[number / CHUNK][number % CHUNK]);
            if (threadIdx.x % 32 == 0) parts[number][threadIdx.x / 32] = sum;
        }
        __syncthreads();
        const int token = threadIdx.x / CHUNK, one = threadIdx.x % CHUNK;
        if (token < TOKENS && block.has(token)) {
            float sum = 0;
            for (int warp = 0; warp < WARPS; warp++) sum += parts[threadIdx.x][warp];
            out[block.row(token) * rank + start + one] = put(sum);
        }
    }
}

// What a block's tokens have between the factors of an adapter, for all its threads.
struct Small {
    float (*at)[MOST_RANK];
    int rank;
    __device__ Small(const Block& block, const T* low, int rank) : rank(rank) {
        __shared__ float shared[TOKENS][MOST_RANK];
        at = shared;
        for (int place = threadIdx.x; place < TOKENS * rank; place += blockDim.x)
            shared[place / rank][place % rank] = get(low[block.row(place / rank) * rank + place % rank]);
        __syncthreads();
    }
};

// Four columns of a block's tokens: rows (tokens, width) + low @ matrix.
struct Sums {
    float at[TOKENS][4];
    __device__ Sums(const Block& block, const T* rows, const Small& low, const T* matrix, int width, int column) {
#pragma unroll
        for (int token = 0; token < TOKENS; token++) {
            const Four from = four(rows + block.row(token) * width + column);
#pragma unroll
            for (int place = 0; place < 4; place++) at[token][place] = get(from.at[place]);
        }
#pragma unroll 4
        for (int one = 0; one < low.rank; one++) {
            const Four factors = four(matrix + Size(one) * width + column);
#pragma unroll
            for (int place = 0; place < 4; place++) {
                const float factor = get(factors.at[place]);
#pragma unroll
                for (int token = 0; token < TOKENS; token++) at[token][place] += low.at[token][one] * factor;
            }
        }
    }
};

// inputs = the norm of state, low = inputs @ first.T.
#ifdef USE_norm_low
KERNEL(norm_low)(
    const T* state, const T* weight, const T* first, T* inputs, T* low, int tokens, int width, int rank, float eps
) {
    const Block block(tokens);
    float squares[TOKENS] = {};
    for (int column = threadIdx.x * 4; column < width; column += blockDim.x * 4)
#pragma unroll
        for (int token = 0; token < TOKENS; token++) {
            const Four from = four(state + block.row(token) * width + column);
#pragma unroll
            for (int place = 0; place < 4; place++) squares[token] += get(from.at[place]) * get(from.at[place]);
        }
    sum_of_block<TOKENS>(squares);
    for (int column = threadIdx.x * 4; column < width; column += blockDim.x * 4) {
        const Four factors = four(weight + column);
#pragma unroll
        for (int token = 0; token < TOKENS; token++) {
            const Four from = four(state + block.row(token) * width + column);
            const float inverse = rsqrtf(squares[token] / width + eps);
            Four to;
#pragma unroll
            for (int place = 0; place < 4; place++)
                to.at[place] = put(get(from.at[place]) * inverse * get(factors.at[place]));
            if (block.has(token)) *(Four*)(inputs + block.row(token) * width + column) = to;
        }
    }
    reduce_rows(block, inputs, first, low, width, rank);
}
#endif

// rest + the gradient of the norm's input, where that of its output is gradient + reduced @ first.
#ifdef USE_norm_back
KERNEL(norm_back)(
    const T* state, const T* weight, const T* gradient, const T* rest, const T* reduced, const T* first, T* out,
    int tokens, int width, int rank, float eps
) {
    const Block block(tokens);
    const Small small(block, reduced, rank);
    float sums[2 * TOKENS] = {};  // of squares, and behind them of products
    for (int column = threadIdx.x * 4; column < width; column += blockDim.x * 4) {
        const Sums whole(block, gradient, small, first, width, column);
        const Four factors = four(weight + column);
#pragma unroll
        for (int token = 0; token < TOKENS; token++) {
            const Four from = four(state + block.row(token) * width + column);
            Four to;
#pragma unroll
            for (int place = 0; place < 4; place++) {
                const float x = get(from.at[place]);
                to.at[place] = put(whole.at[token][place]);
                sums[token] += x * x;
                sums[TOKENS + token] += x * get(to.at[place]) * get(factors.at[place]);
            }
            // Until the sums are known.
            if (block.has(token)) *(Four*)(out + block.row(token) * width + column) = to;
        }
    }
    sum_of_block<2 * TOKENS>(sums);
    for (int column = threadIdx.x * 4; column < width; column += blockDim.x * 4) {
        const Four factors = four(weight + column);
#pragma unroll
        for (int token = 0; token < TOKENS; token++) {
            if (!block.has(token)) continue;
            const Size start = block.row(token) * width + column;
            const Four whole = four(out + start), add = four(rest + start), from = four(state + start);
            const float inverse = rsqrtf(sums[token] / width + eps);
            const float share = sums[TOKENS + token] * inverse * inverse * inverse / width;
            Four to;
#pragma unroll
            for (int place = 0; place < 4; place++) {
                const float changed = get(whole.at[place]) * get(factors.at[place]) * inverse;
                to.at[place] = put(get(add.at[place]) + changed - get(from.at[place]) * share);
            }
            *(Four*)(out + start) = to;
        }
    }
}
#endif

// Sines and cosines of the angles by which four pairs of a head turn; of values none does.
struct Angles {
    float sines[4] = {}, cosines[4] = {1, 1, 1, 1};
    // turns: (positions, 2, pairs) sines and cosines.
    __device__ Angles(const float* turns, int place, int pairs, int pair, bool turned) {
        const float* from = turns + Size(place) * 2 * pairs + pair;
        if (turned)
#pragma unroll
            for (int one = 0; one < 4; one++) sines[one] = from[one], cosines[one] = from[pairs + one];
    }
};

// Of queries, keys and values: which a head is of, and where its rows begin in an array of its kind, which lies head
// after head. Together they lie token after token.
struct Head {
    int kind, number, count;
    __device__ Head(int head, int queries, int keys) {
        kind = head < queries ? 0 : head < queries + keys ? 1 : 2;
        count = kind ? keys : queries, number = kind ? (head - queries) % keys : head;
    }
    __device__ Size start(int token, int length, int size) const {
        return (Size(token / length * count + number) * length + token % length) * size;
    }
};

// heads + low @ second, apart, and all but values turned by their places in their examples. They lie row after row, head
// after head, as many tokens in a row as `length`. firsts: of each token the first of its example.
#ifdef USE_turn
KERNEL(turn)(
    const T* heads, const float* turns, const int* firsts, const T* low, const T* second, T* query, T* key, T* value,
    int rows, int length, int queries, int keys, int size, int rank
) {
    const Block block(rows * length);
    const Small small(block, low, rank);
    const int width = (queries + 2 * keys) * size, half = size / 2;
    for (int index = threadIdx.x * 4; index < width / 2; index += blockDim.x * 4) {
        const Head head(index / half, queries, keys);
        const int pair = index % half, column = index / half * size + pair;
        const Sums first(block, heads, small, second, width, column);
        const Sums other(block, heads, small, second, width, column + half);
        T* to = head.kind == 0 ? query : head.kind == 1 ? key : value;
#pragma unroll
        for (int token = 0; token < TOKENS; token++) {
            if (!block.has(token)) continue;
            const int place = block.row(token);
            const Angles angles(turns, place - firsts[place], half, pair, head.kind < 2);
            Four above, below;
#pragma unroll
            for (int place = 0; place < 4; place++) {
                const float sine = angles.sines[place], cosine = angles.cosines[place];
                above.at[place] = put(first.at[token][place] * cosine - other.at[token][place] * sine);
                below.at[place] = put(first.at[token][place] * sine + other.at[token][place] * cosine);
            }
            const Size start = head.start(block.row(token), length, size) + pair;
            *(Four*)(to + start) = above, *(Four*)(to + start + half) = below;
        }
    }
}
#endif

// The way back to heads, and reduced = heads @ second.T. Of keys and values there are `parts`, to be added up, each as
// if it were a head.
#ifdef USE_turn_back
KERNEL(turn_back)(
    const T* query, const T* key, const T* value, const float* turns, const int* firsts, const T* second, T* heads,
    T* reduced, int rows, int length, int queries, int keys, int size, int rank, int parts
) {
    const Block block(rows * length);
    const int width = (queries + 2 * keys) * size, half = size / 2;
    for (int index = threadIdx.x * 4; index < width / 2; index += blockDim.x * 4) {
        Head head(index / half, queries, keys);
        const int pair = index % half, column = index / half * size + pair, count = head.kind ? parts : 1;
        head.count *= count, head.number *= count;
        const T* from = head.kind == 0 ? query : head.kind == 1 ? key : value;
#pragma unroll
        for (int token = 0; token < TOKENS; token++) {
            if (!block.has(token)) continue;
            float first[4] = {}, other[4] = {};
            for (int part = 0; part < count; part++) {
                const Size start = head.start(block.row(token), length, size) + Size(part) * length * size + pair;
                const Four above = four(from + start), below = four(from + start + half);
#pragma unroll
                for (int place = 0; place < 4; place++)
                    first[place] += get(above.at[place]), other[place] += get(below.at[place]);
            }
            const int place = block.row(token);
            const Angles angles(turns, place - firsts[place], half, pair, head.kind < 2);
            Four above, below;
#pragma unroll
            for (int place = 0; place < 4; place++) {
                const float sine = angles.sines[place], cosine = angles.cosines[place];
                above.at[place] = put(first[place] * cosine + other[place] * sine);
                below.at[place] = put(other[place] * cosine - first[place] * sine);
            }
            const Size start = block.row(token) * width + column;
            *(Four*)(heads + start) = above, *(Four*)(heads + start + half) = below;
        }
    }
    reduce_rows(block, heads, second, reduced, width, rank);
}
#endif

// Of all tokens reduced.T @ inputs (rank, inner), and behind it low.T @ gradient (rank, outer). A block takes 64 columns of
// one of them and a chunk of rows, a thread 2 columns, and a warp every sixteenth token, some of them at once.
#ifdef USE_factors_back
struct alignas(2 * sizeof(T)) Two {
    T at[2];
};

KERNEL(factors_back)(
    const T* inputs, const T* reduced, const T* low, const T* gradient, T* out, int tokens, int inner, int outer, int rank
) {
    const int AT_ONCE = 4;
    __shared__ float parts[WARPS][2 * CHUNK][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, chunks = rank / CHUNK, blocks = (inner + 63) / 64;
    const int block = blockIdx.x / chunks, start = blockIdx.x % chunks * CHUNK;
    const bool behind = block >= blocks;
    const T *matrix = behind ? gradient : inputs, *small = (behind ? low : reduced) + start;
    const int width = behind ? outer : inner, first = (block - (behind ? blocks : 0)) * 64;
    const int column = min(first + lane * 2, width - 2);
    float sums[CHUNK][2] = {};
    for (int token = warp; token < tokens; token += AT_ONCE * WARPS) {
        Two from[AT_ONCE];
        Four factors[AT_ONCE][2];
#pragma unroll
        for (int next = 0; next < AT_ONCE; next++) {  // all of them on their way before the first is there
            const Size row = min(token + next * WARPS, tokens - 1);
            from[next] = *(const Two*)(matrix + row * width + column);
            factors[next][0] = four(small + row * rank), factors[next][1] = four(small + row * rank + 4);
        }
#pragma unroll
        for (int next = 0; next < AT_ONCE; next++) {
            const bool there = token + next * WARPS < tokens;
            const float x = there ? get(from[next].at[0]) : 0, y = there ? get(from[next].at[1]) : 0;
#pragma unroll
            for (int one = 0; one < CHUNK; one++) {
                const float factor = get(factors[next][one / 4].at[one % 4]);
                sums[one][0] += x * factor, sums[one][1] += y * factor;
            }
        }
    }
#pragma unroll
    for (int number = 0; number < 2 * CHUNK; number++) parts[warp][number][lane] = sums[number / 2][number % 2];
    __syncthreads();
    T* to = out + (behind ? Size(rank) * inner : 0) + Size(start) * width;
    for (int index = threadIdx.x; index < CHUNK * 64; index += blockDim.x) {
        const int one = index / 64, place = index % 64;
        float sum = 0;
        for (int part = 0; part < WARPS; part++) sum += parts[part][one * 2 + place % 2][place / 2];
        if (first + place < width) to[Size(one) * width + first + place] = put(sum);
    }
}
#endif

// silu(gate) * up. A thread takes eight columns. joined: gate and up are one array (tokens, 2 * inner), side by side.
#ifdef USE_gated
KERNEL(gated)(const T* gate, const T* up, T* out, int tokens, int inner, int joined) {
    const Size index = (Size(blockIdx.x) * blockDim.x + threadIdx.x) * 8, token = index / inner;
    if (token >= tokens) return;
    const Size start = joined ? token * 2 * inner + index % inner : index;
    const Eight gates = eight(gate + start), ups = eight(up + start + (joined ? inner : 0));
    Eight to;
#pragma unroll
    for (int place = 0; place < 8; place++) {
        const float x = get(gates.at[place]);
        to.at[place] = put(__fdividef(x, 1 + __expf(-x)) * get(ups.at[place]));
    }
    *(Eight*)(out + index) = to;
}
#endif

// The gradient of silu(gate) * up -> that of (gate, up), which lie side by side. A thread takes eight columns.
#ifdef USE_gates_back
KERNEL(gates_back)(const T* gradient, const T* gates, T* out, int tokens, int inner) {
    const Size index = (Size(blockIdx.x) * blockDim.x + threadIdx.x) * 8, token = index / inner;
    if (token >= tokens) return;
    const Size start = token * 2 * inner + index % inner;
    const Eight changes = eight(gradient + index), gate = eight(gates + start), up = eight(gates + start + inner);
    Eight d_gate, d_up;
#pragma unroll
    for (int place = 0; place < 8; place++) {
        const float x = get(gate.at[place]), change = get(changes.at[place]), share = __fdividef(1, 1 + __expf(-x));
        d_gate.at[place] = put(change * get(up.at[place]) * share * (1 + x * (1 - share)));
        d_up.at[place] = put(change * x * share);
    }
    *(Eight*)(out + start) = d_gate, *(Eight*)(out + start + inner) = d_up;
}
#endif

// A warp takes one row. What a causal mask hides, or a window if it is not 0, gets the weight 0.
#ifdef USE_softmax
KERNEL(softmax)(const T* scores, T* weights, int rows, int length, int window, float scale) {
    const int lane = threadIdx.x % 32, row = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (row >= rows) return;
    const int place = row % length, first = window && place >= window ? place - window + 1 : 0;
    const T* from = scores + Size(row) * length;
    T* to = weights + Size(row) * length;
    float most = -3.0e38f, sum = 0;
    for (int column = first + lane; column <= place; column += 32) most = fmaxf(most, get(from[column]));
    for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
    for (int column = first + lane; column <= place; column += 32) sum += expf((get(from[column]) - most) * scale);
    sum = sum_of_warp(sum);
    for (int column = lane; column < length; column += 32) {
        const bool seen = column >= first && column <= place;
        to[column] = put(seen ? expf((get(from[column]) - most) * scale) / sum : 0.0f);
    }
}
#endif

#ifdef USE_softmax_back
KERNEL(softmax_back)(const T* weights, const T* gradient, T* out, int rows, int length, float scale) {
    const int lane = threadIdx.x % 32, row = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (row >= rows) return;
    const Size start = Size(row) * length;
    float sum = 0;
    for (int column = lane; column < length; column += 32) sum += get(weights[start + column]) * get(gradient[start + column]);
    sum = sum_of_warp(sum);
    for (int column = lane; column < length; column += 32)
        out[start + column] = put(get(weights[start + column]) * ((get(gradient[start + column]) - sum) * scale));
}
#endif
