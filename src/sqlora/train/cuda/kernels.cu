// What stands between a layer's matrix products, for sqlora.train.cuda.kernels, which compiles this file with NVRTC.
// T is the arrays' type; `get` and `put` turn it into float and back, and all sums are of floats.
// KERNEL(name) declares a kernel, and USE_name says which one is wanted. tests/unit/test_kernels.py runs this file on a CPU.
//
// Widths are multiples of 4, an adapter's rank is one of CHUNK. Of two factors `first` is (rank, inputs) and `second`
// (rank, outputs); `low` (tokens, rank) is what is between them, `reduced` its gradient.

typedef unsigned long long Size;

const int TOKENS = 2;  // rows that a block takes, so that it reads an adapter half as often
const int CHUNK = 8;   // columns of an adapter that a thread takes at once
const int MOST_RANK = 32;
const int WARPS = 16;  // of a block of those kernels that count on it

struct alignas(4 * sizeof(T)) Four {
    T at[4];
};

__device__ inline Four four(const T* from) { return *(const Four*)from; }

__device__ inline float sum_of_warp(float value) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

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
        values[one] = 0;
        for (int warp = 0; warp < WARPS; warp++) values[one] += parts[one][warp];
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
#pragma unroll 8
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

// heads + low @ second, apart, and all but values turned.
#ifdef USE_turn
KERNEL(turn)(
    const T* heads, const float* turns, const T* low, const T* second, T* query, T* key, T* value, int rows, int length,
    int queries, int keys, int size, int rank
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
            const Angles angles(turns, block.row(token) % length, half, pair, head.kind < 2);
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
    const T* query, const T* key, const T* value, const float* turns, const T* second, T* heads, T* reduced, int rows,
    int length, int queries, int keys, int size, int rank, int parts
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
            const Angles angles(turns, block.row(token) % length, half, pair, head.kind < 2);
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

// The gradient of silu(gate) * up -> that of (gate, up), which lie side by side. A thread takes four columns.
#ifdef USE_gates_back
KERNEL(gates_back)(const T* gradient, const T* gates, T* out, int tokens, int inner) {
    const Size index = (Size(blockIdx.x) * blockDim.x + threadIdx.x) * 4, token = index / inner;
    if (token >= tokens) return;
    const Size start = token * 2 * inner + index % inner;
    const Four changes = four(gradient + index), gate = four(gates + start), up = four(gates + start + inner);
    Four d_gate, d_up;
#pragma unroll
    for (int place = 0; place < 4; place++) {
        const float x = get(gate.at[place]), change = get(changes.at[place]), share = 1 / (1 + expf(-x));
        d_gate.at[place] = put(change * get(up.at[place]) * share * (1 + x * (1 - share)));
        d_up.at[place] = put(change * x * share);
    }
    *(Four*)(out + start) = d_gate, *(Four*)(out + start + inner) = d_up;
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

#ifdef MULTIPLY
// Attention and its way back, by the tensor cores' products of 16 x 16 and 16 x 8 numbers, for types of 16 bits. A warp
// takes 16 queries of a head, or 16 keys, and works on 16 x 16 scores at a time: what all of them would take is never in
// memory (Dao et al., 2022: FlashAttention). Inputs are short enough that they stay in the caches.
//
// A thread holds, of a left side and of what comes out, rows `upper()` and upper() + 8, and of each eight columns
// `left()` and left() + 1; of a right side, turned, the same with columns for rows (PTX: mma.m16n8k16).

__device__ inline int upper() { return threadIdx.x % 32 / 4; }
__device__ inline int left() { return threadIdx.x % 4 * 2; }
__device__ inline unsigned both(const T* from) { return *(const unsigned*)from; }
__device__ inline unsigned both(T first, T second) { return first | unsigned(second) << 16; }
__device__ inline unsigned both(float first, float second) { return both(put(first), put(second)); }

// Rows of a matrix, of which the last is taken for those behind it.
struct Matrix {
    const T* start;
    Size stride;
    int last;
    __device__ const T* row(int number) const { return start + Size(min(number, last)) * stride; }
};

// 16 rows of a matrix as a left side.
template <int SIZE> struct Rows {
    unsigned parts[SIZE / 16][4];
    __device__ Rows(const Matrix& matrix, int first) {
        const T *above = matrix.row(first + upper()) + left(), *below = matrix.row(first + upper() + 8) + left();
#pragma unroll
        for (int part = 0; part < SIZE / 16; part++) {
            parts[part][0] = both(above + 16 * part), parts[part][1] = both(below + 16 * part);
            parts[part][2] = both(above + 16 * part + 8), parts[part][3] = both(below + 16 * part + 8);
        }
    }
};

// 16 x 16 numbers that come out of products, in two halves of columns; places are those of a thread's four in a half.
struct Tile {
    float halves[2][4] = {};
    __device__ static int row(int number) { return upper() + number / 2 * 8; }
    __device__ static int column(int half, int number) { return 8 * half + left() + number % 2; }
};

// rows @ matrix[first : first + 16].T
template <int SIZE> __device__ inline Tile products(const Rows<SIZE>& rows, const Matrix& matrix, int first) {
    Tile tile;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const T* from = matrix.row(first + 8 * half + upper()) + left();
#pragma unroll
        for (int part = 0; part < SIZE / 16; part++) {
            const unsigned right[2] = {both(from + 16 * part), both(from + 16 * part + 8)};
            multiply(tile.halves[half], rows.parts[part], right);
        }
    }
    return tile;
}

// 16 rows of what comes out.
template <int SIZE> struct Results {
    float parts[SIZE / 8][4] = {};

    // += tile @ matrix[first : first + 16]
    __device__ void add(const Tile& tile, const Matrix& matrix, int first) {
        const unsigned rows[4] = {
            both(tile.halves[0][0], tile.halves[0][1]), both(tile.halves[0][2], tile.halves[0][3]),
            both(tile.halves[1][0], tile.halves[1][1]), both(tile.halves[1][2], tile.halves[1][3]),
        };
        const T *from[4] = {
            matrix.row(first + left()) + upper(), matrix.row(first + left() + 1) + upper(),
            matrix.row(first + left() + 8) + upper(), matrix.row(first + left() + 9) + upper(),
        };
#pragma unroll
        for (int part = 0; part < SIZE / 8; part++) {
            const unsigned right[2] = {
                both(from[0][8 * part], from[1][8 * part]), both(from[2][8 * part], from[3][8 * part])
            };
            multiply(parts[part], rows, right);
        }
    }

    // Into rows from `first` of a matrix, each times its factor.
    __device__ void store(T* matrix, Size stride, int first, int length, const float* factors) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first + upper() + 8 * half;
            if (row < length)
                for (int part = 0; part < SIZE / 8; part++)
                    *(unsigned*)(matrix + Size(row) * stride + 8 * part + left()) =
                        both(parts[part][2 * half] * factors[half], parts[part][2 * half + 1] * factors[half]);
        }
    }
};

// Of the four threads that hold a row.
__device__ inline float sum_of_row(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

__device__ inline float most_of_row(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

// Of row `number` of two matrices, for the four threads that take it; their columns are theirs.
template <int SIZE> __device__ inline float product_of_rows(const Matrix& one, const Matrix& other, int number) {
    const T *from = one.row(number) + left(), *with = other.row(number) + left();
    float sum = 0;
#pragma unroll
    for (int part = 0; part < SIZE / 8; part++) {
        const unsigned here = both(from + 8 * part), there = both(with + 8 * part);
        sum += get(T(here)) * get(T(there)) + get(T(here >> 16)) * get(T(there >> 16));
    }
    return sum_of_row(sum);
}

__device__ inline bool sees(int query, int key, int length, int window) {
    return query < length && key <= query && (!window || key > query - window);
}

// What a warp works on: 16 queries from `first` of a head, or keys. tile: its number among all of its kind.
struct Task {
    int first, head, row;
    __device__ Task(int tile, int heads, int length) {
        const int tiles = (length + 15) / 16;
        first = tile % tiles * 16, head = tile / tiles % heads, row = tile / tiles / heads;
    }
};

// mixed: the attention's output, token after token; sums: (rows, queries, length) the logarithm of each query's sum.
template <int SIZE> __device__ inline void attend(
    const T* query, const T* key, const T* value, T* mixed, float* sums, int rows, int length, int queries, int keys,
    int window, float scale
) {
    const int warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (warp >= (length + 15) / 16 * queries * rows) return;
    const Task task(warp, queries, length);
    const Size head = task.row * queries + task.head, shared = task.row * keys + task.head / (queries / keys);
    const Matrix key_rows = {key + shared * length * SIZE, SIZE, length - 1};
    const Matrix value_rows = {value + shared * length * SIZE, SIZE, length - 1};
    const Rows<SIZE> query_rows(Matrix{query + head * length * SIZE, SIZE, length - 1}, task.first);
    Results<SIZE> out;
    float most[2] = {-3.0e38f, -3.0e38f}, sum[2] = {};
    for (int from = window ? max(0, task.first - window + 1) / 16 * 16 : 0; from <= task.first; from += 16) {
        Tile scores = products(query_rows, key_rows, from);
#pragma unroll
        for (int low = 0; low < 2; low++) {  // the row above and that below
            const int place = task.first + upper() + 8 * low;
            float here = most[low];
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int number = 2 * low; number < 2 * low + 2; number++) {
                    float& score = scores.halves[half][number];
                    const bool seen = sees(place, from + Tile::column(half, number), length, window);
                    score = seen ? score * scale : -3.0e38f;
                    here = fmaxf(here, score);
                }
            here = most_of_row(here);
            const float less = expf(most[low] - here);
            most[low] = here, sum[low] *= less;
#pragma unroll
            for (int part = 0; part < SIZE / 8; part++)
                out.parts[part][2 * low] *= less, out.parts[part][2 * low + 1] *= less;
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int number = 2 * low; number < 2 * low + 2; number++) {
                    float& score = scores.halves[half][number];
                    score = score < -1.0e38f ? 0 : expf(score - here);  // what is no number stays none
                    sum[low] += score;
                }
        }
        out.add(scores, value_rows, from);
    }
    float factors[2];
#pragma unroll
    for (int low = 0; low < 2; low++) {
        const int place = task.first + upper() + 8 * low;
        sum[low] = sum_of_row(sum[low]);
        factors[low] = 1 / sum[low];
        if (place < length && left() == 0) sums[head * length + place] = most[low] + logf(sum[low]);
    }
    const Size stride = Size(queries) * SIZE;
    out.store(mixed + task.row * length * stride + task.head * SIZE, stride, task.first, length, factors);
}

// gradient: that of mixed. A warp takes the gradient of 16 keys, of 16 values or of 16 queries, of a query's head: those of
// keys and values are (rows, queries, length, size), to be added up for the heads that share a key. The scores are computed
// again. A score's gradient is its weight times how much that of the weight is above `mean`, what mixed and its gradient
// give together.
template <int SIZE> __device__ inline void attend_back(
    const T* query, const T* key, const T* value, const T* mixed, const float* sums, const T* gradient, T* d_query,
    T* d_key, T* d_value, int rows, int length, int queries, int keys, int window, float scale
) {
    const int tasks = (length + 15) / 16 * rows * queries, warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (warp >= 3 * tasks) return;
    const int kind = warp / tasks, last = length - 1;  // key, value, query
    const Task task(warp % tasks, queries, length);
    const Size shared = task.row * keys + task.head / (queries / keys), head = task.row * queries + task.head;
    const Size stride = Size(queries) * SIZE, start = task.row * length * stride + task.head * SIZE;
    const Matrix query_rows = {query + head * length * SIZE, SIZE, last};
    const Matrix key_rows = {key + shared * length * SIZE, SIZE, last}, value_rows = {value + shared * length * SIZE, SIZE, last};
    const Matrix changes = {gradient + start, stride, last}, outputs = {mixed + start, stride, last};
    const float ones[2] = {1, 1};
    Results<SIZE> out;
    if (kind == 2) {
        const Rows<SIZE> query_left(query_rows, task.first), change_left(changes, task.first);
        float mean[2], total[2];
#pragma unroll
        for (int low = 0; low < 2; low++) {
            const int place = min(task.first + upper() + 8 * low, last);
            mean[low] = product_of_rows<SIZE>(changes, outputs, place);
            total[low] = sums[head * length + place];
        }
        for (int from = window ? max(0, task.first - window + 1) / 16 * 16 : 0; from <= task.first; from += 16) {
            Tile scores = products(query_left, key_rows, from);
            const Tile changed = products(change_left, value_rows, from);
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int number = 0; number < 4; number++) {
                    float& score = scores.halves[half][number];
                    const int place = task.first + Tile::row(number), low = number / 2;
                    const bool seen = sees(place, from + Tile::column(half, number), length, window);
                    const float weight = seen ? expf(score * scale - total[low]) : 0;
                    score = weight * (changed.halves[half][number] - mean[low]) * scale;
                }
            out.add(scores, key_rows, from);
        }
        out.store(d_query + head * length * SIZE, SIZE, task.first, length, ones);
        return;
    }
    const Rows<SIZE> key_left(key_rows, task.first), value_left(value_rows, task.first);
    for (int from = task.first; from < length && (!window || from < task.first + 15 + window); from += 16) {
        Tile scores = products(key_left, query_rows, from), changed;
        if (kind == 0) changed = products(value_left, changes, from);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // Of the queries in this half's columns each four threads know one, and need two.
            const int mine = from + 8 * half + upper();
            const float total = sums[head * length + min(mine, last)];
            const float mean = kind == 0 ? product_of_rows<SIZE>(changes, outputs, mine) : 0;
            float totals[2], means[2];
#pragma unroll
            for (int one = 0; one < 2; one++) {
                totals[one] = __shfl_sync(0xffffffffu, total, (left() + one) * 4);
                means[one] = __shfl_sync(0xffffffffu, mean, (left() + one) * 4);
            }
#pragma unroll
            for (int number = 0; number < 4; number++) {
                float& score = scores.halves[half][number];
                const int place = from + Tile::column(half, number);
                const bool seen = sees(place, task.first + Tile::row(number), length, window);
                const float weight = seen ? expf(score * scale - totals[number % 2]) : 0;
                const float change = (changed.halves[half][number] - means[number % 2]) * scale;
                score = kind == 0 ? weight * change : weight;
            }
        }
        if (kind == 0) out.add(scores, query_rows, from);
        else out.add(scores, changes, from);
    }
    out.store((kind == 0 ? d_key : d_value) + head * length * SIZE, SIZE, task.first, length, ones);
}

#define ATTEND(SIZE) \
    KERNEL(attend_##SIZE)( \
        const T* query, const T* key, const T* value, T* mixed, float* sums, int rows, int length, int queries, \
        int keys, int window, float scale \
    ) { \
        attend<SIZE>(query, key, value, mixed, sums, rows, length, queries, keys, window, scale); \
    }
#define ATTEND_BACK(SIZE) \
    KERNEL(attend_back_##SIZE)( \
        const T* query, const T* key, const T* value, const T* mixed, const float* sums, const T* gradient, T* d_query, \
        T* d_key, T* d_value, int rows, int length, int queries, int keys, int window, float scale \
    ) { \
        attend_back<SIZE>( \
            query, key, value, mixed, sums, gradient, d_query, d_key, d_value, rows, length, queries, keys, window, scale \
        ); \
    }
#ifdef USE_attend_64
ATTEND(64)
#endif
#ifdef USE_attend_128
ATTEND(128)
#endif
#ifdef USE_attend_back_64
ATTEND_BACK(64)
#endif
#ifdef USE_attend_back_128
ATTEND_BACK(128)
#endif
#endif
