// Attention and its way back, by the tensor cores' products of 16 x 16 and 16 x 8 numbers, for types of 16 bits. A block
// takes some rows of a head, each of its warps 16 of them, and the rows on the other side go past in tiles in shared
// memory, the next of which are copied meanwhile: what all scores would take is never in memory (Dao et al., 2022:
// FlashAttention).
//
// A thread holds, of a left side and of what comes out, rows `upper()` and upper() + 8, and of each eight columns
// `left()` and left() + 1; of a right side, turned, the same with columns for rows (PTX: mma.m16n8k16, ldmatrix).

const int TILE = 16;     // rows that go past together
const int STAGES = 4;    // tiles of a matrix in shared memory: one at work, the others on their way
const int THREADS = 128;
const int OWN = THREADS / 32 * 16;
const int BESIDE = 8;    // more columns in shared memory, or eight rows of a column would lie in one bank
const float HIDDEN = -3.0e38f;
const float LOG2_E = 1.44269504f;

__device__ inline int lane() { return threadIdx.x % 32; }
__device__ inline int upper() { return lane() / 4; }
__device__ inline int left() { return lane() % 4 * 2; }
__device__ inline unsigned both(const T* from) { return *(const unsigned*)from; }
__device__ inline unsigned both(T first, T second) { return first | unsigned(second) << 16; }
__device__ inline unsigned both(float first, float second) { return both(put(first), put(second)); }

// Rows of a matrix, of which the last is taken for those behind it.
struct Matrix {
    const T* start;
    int stride, last;
    __device__ const T* row(int number) const { return start + Size(min(number, last)) * stride; }
};

// A row in shared memory.
template <int SIZE> struct Stored {
    T at[SIZE + BESIDE];
};

// Begin to copy a tile from row `first` on.
template <int SIZE> __device__ inline void fetch(Stored<SIZE>* to, const Matrix& from, int first) {
    const int pieces = SIZE / 8, step = THREADS / pieces;  // a thread's rows
    const int row = threadIdx.x / pieces, column = threadIdx.x % pieces * 8;
    const Place place = place_of(to[row].at) + column;
#pragma unroll
    for (int next = 0; next < TILE; next += step)
        copy_eight(place + next * (SIZE + BESIDE), from.row(first + row + next) + column);
}

// 16 rows as a left side.
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

// rows @ tile.T
template <int SIZE> __device__ inline Tile products(const Rows<SIZE>& rows, const Stored<SIZE>* tile) {
    Tile result;
    const Place from = place_of(tile[lane() / 16 * 8 + lane() % 8].at) + lane() / 8 % 2 * 8;
#pragma unroll
    for (int part = 0; part < SIZE / 16; part++) {
        unsigned right[4];
        read_matrices(right, from + 16 * part);
        multiply(result.halves[0], rows.parts[part], right);
        multiply(result.halves[1], rows.parts[part], right + 2);
    }
    return result;
}

// 16 rows of what comes out.
template <int SIZE> struct Results {
    float parts[SIZE / 8][4] = {};

    // += weights @ tile
    __device__ void add(const Tile& weights, const Stored<SIZE>* tile) {
        const unsigned rows[4] = {
            both(weights.halves[0][0], weights.halves[0][1]), both(weights.halves[0][2], weights.halves[0][3]),
            both(weights.halves[1][0], weights.halves[1][1]), both(weights.halves[1][2], weights.halves[1][3]),
        };
        const Place from = place_of(tile[lane() % 16].at) + lane() / 16 * 8;
#pragma unroll
        for (int part = 0; part < SIZE / 16; part++) {
            unsigned right[4];
            read_turned_matrices(right, from + 16 * part);
            multiply(parts[2 * part], rows, right);
            multiply(parts[2 * part + 1], rows, right + 2);
        }
    }

    // Into rows from `first` of a matrix that has `count`, each times its factor.
    __device__ void store(T* matrix, int stride, int first, int count, const float* factors) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first + upper() + 8 * half;
            T* to = matrix + Size(row) * stride + left();
            if (row < count)
#pragma unroll
                for (int part = 0; part < SIZE / 8; part++)
                    *(unsigned*)(to + 8 * part) =
                        both(parts[part][2 * half] * factors[half], parts[part][2 * half + 1] * factors[half]);
        }
    }
};

// Tiles of two matrices in shared memory.
template <int SIZE> struct Tiles {
    Stored<SIZE> (*one)[TILE], (*other)[TILE];

    // Rows from `begin` to `end` of two matrices go past: work(tile of one, of the other, stage, number of the first row).
    // more(stage, number) begins to copy what else belongs to a tile.
    template <class More, class Work> __device__ void pass(
        const Matrix& from, const Matrix& with, int begin, int end, More more, Work work
    ) const {
        const auto start = [&](int number, int stage) {
            if (number < end) {
                fetch<SIZE>(one[stage], from, number);
                fetch<SIZE>(other[stage], with, number);
                more(stage, number);
            }
            end_of_copies();
        };
        __syncthreads();  // all are through with the last pass
#pragma unroll
        for (int stage = 0; stage < STAGES - 1; stage++) start(begin + stage * TILE, stage);
        for (int number = begin, stage = 0; number < end; number += TILE, stage = (stage + 1) % STAGES) {
            await_copies_but<STAGES - 2>();
            __syncthreads();  // all have this tile, and are through with the one before
            start(number + (STAGES - 1) * TILE, (stage + STAGES - 1) % STAGES);
            work(one[stage], other[stage], stage, number);
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

// Whether a query sees a key that is so many places before it; one behind it is none. `most` is 0 for rows behind the end.
__device__ inline bool sees(int before, int most) { return unsigned(before) < unsigned(most); }

// Which tokens see each other: examples lie one after another. spans: (2, tokens) of each token the first of its example
// and the end of it. window: how many tokens a query sees at most, itself included.
struct Spans {
    const int *firsts, *ends;
    int tokens, window;
    __device__ Spans(const int* spans, int tokens, int window)
        : firsts(spans), ends(spans + tokens), tokens(tokens), window(window) {}
    // The first key that a query sees, and behind the last query that sees a key; both rise from token to token.
    __device__ int first(int query) const { return max(firsts[min(query, tokens - 1)], query - window + 1); }
    __device__ int end(int key) const { return min(ends[min(key, tokens - 1)], key + window); }
    // How many keys from itself back a query sees, and how many queries from itself on see a key.
    __device__ int back(int query) const { return query < tokens ? query - first(query) + 1 : 0; }
    __device__ int on(int key) const { return key < tokens ? end(key) - key : 0; }
};

// What a block works on: rows from `first` on of a head, `mine` the first of the warp's. number: among all of its kind.
struct Task {
    int first, head, mine;
    __device__ Task(int number, int tokens) {
        const int chunks = (tokens + OWN - 1) / OWN;
        first = number % chunks * OWN, head = number / chunks;
        mine = first + threadIdx.x / 32 * 16;
    }
    // The keys that its queries see.
    __device__ int begin(const Spans& spans) const { return spans.first(first) / TILE * TILE; }
    __device__ int end(int tokens) const { return min(tokens, first + OWN); }
    // Whether a query of the warp sees a key of a tile, and whether a query of a tile sees a key of the warp, if the first
    // key that its queries see, or behind the last query that sees its keys, is that one.
    __device__ bool looks(int key, int tokens, int from) const {
        return mine < tokens && key <= mine + 15 && key + TILE > from;
    }
    __device__ bool seen(int query, int tokens, int until) const {
        return mine < tokens && query + TILE > mine && query < until;
    }
};

// mixed: the attention's output, token after token; sums: (queries, tokens) of each query's sum the logarithm to base 2.
template <int SIZE> __device__ inline void attend(
    const T* query, const T* key, const T* value, const int* spans_of, T* mixed, float* sums, int tokens, int queries,
    int keys, int window, float scale
) {
    alignas(16) __shared__ Stored<SIZE> one[STAGES][TILE], other[STAGES][TILE];
    const Task task(blockIdx.x, tokens);
    const Spans spans(spans_of, tokens, window);
    const Size head = task.head, same = task.head / (queries / keys);
    const Matrix key_rows = {key + same * tokens * SIZE, SIZE, tokens - 1};
    const Matrix value_rows = {value + same * tokens * SIZE, SIZE, tokens - 1};
    const Rows<SIZE> query_left(Matrix{query + head * tokens * SIZE, SIZE, tokens - 1}, task.mine);
    Results<SIZE> out;
    scale *= LOG2_E;
    float most[2] = {HIDDEN, HIDDEN}, sum[2] = {};
    const int first = spans.first(task.mine), back[2] = {
        spans.back(task.mine + Tile::row(0)), spans.back(task.mine + Tile::row(2))
    };
    Tiles<SIZE>{one, other}.pass(
        key_rows, value_rows, task.begin(spans), task.end(tokens), [](int, int) {},
        [&](const Stored<SIZE>* key_tile, const Stored<SIZE>* value_tile, int, int from) {
            if (!task.looks(from, tokens, first)) return;
            Tile scores = products(query_left, key_tile);
#pragma unroll
            for (int low = 0; low < 2; low++) {  // the row above and that below
                const int before = task.mine - from + Tile::row(2 * low);
                float here = most[low];
#pragma unroll
                for (int number = 0; number < 4; number++) {
                    const int half = number / 2, at = 2 * low + number % 2;
                    float& score = scores.halves[half][at];
                    if (!sees(before - Tile::column(half, at), back[low])) score = HIDDEN;
                    here = fmaxf(here, score);
                }
                here = most_of_row(here);
                const float base = here == HIDDEN ? 0 : here * scale;  // so that what is hidden has the weight 0
                const float less = exp2_of(most[low] * scale - base);
                most[low] = here, sum[low] *= less;
#pragma unroll
                for (int part = 0; part < SIZE / 8; part++)
                    out.parts[part][2 * low] *= less, out.parts[part][2 * low + 1] *= less;
#pragma unroll
                for (int number = 0; number < 4; number++) {
                    float& score = scores.halves[number / 2][2 * low + number % 2];
                    score = exp2_of(score * scale - base);
                    sum[low] += score;
                }
            }
            out.add(scores, value_tile);
        }
    );
    float factors[2];
#pragma unroll
    for (int low = 0; low < 2; low++) {
        const int place = task.mine + Tile::row(2 * low);
        sum[low] = sum_of_row(sum[low]);
        factors[low] = 1 / sum[low];
        if (place < tokens && left() == 0) sums[head * tokens + place] = most[low] * scale + log2f(sum[low]);
    }
    out.store(mixed + task.head * SIZE, queries * SIZE, task.mine, tokens, factors);
}

// What mixed and its gradient, token after token, give together for each query: (queries, tokens). A thread takes eight
// columns.
template <int SIZE> __device__ inline void attend_means(
    const T* mixed, const T* gradient, float* means, int tokens, int queries
) {
    const int number = (blockIdx.x * blockDim.x + threadIdx.x) / (SIZE / 8), token = number / queries;
    const Size start = (Size(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
    const bool there = token < tokens;
    float sum = 0;
    if (there) {
        const Eight here = eight(mixed + start), with = eight(gradient + start);
#pragma unroll
        for (int place = 0; place < 8; place++) sum += get(here.at[place]) * get(with.at[place]);
    }
#pragma unroll
    for (int step = SIZE / 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (there && threadIdx.x % (SIZE / 8) == 0) means[Size(number - token * queries) * tokens + token] = sum;
}

// gradient: that of mixed. A block takes the gradient of keys, of values or of queries; those of keys and values are
// (keys * parts, tokens, size), each of so many heads that share a key, to be added up. The scores are computed again.
// A score's gradient is its weight times how much that of the weight is above the query's mean.
template <int SIZE> __device__ inline void attend_back(
    const T* query, const T* key, const T* value, const int* spans_of, const float* means, const float* sums,
    const T* gradient, T* d_query, T* d_key, T* d_value, int tokens, int queries, int keys, int parts, int window,
    float scale
) {
    alignas(16) __shared__ Stored<SIZE> one[STAGES][TILE], other[STAGES][TILE];
    alignas(16) __shared__ float mean_tiles[STAGES][TILE], sum_tiles[STAGES][TILE];
    const int last = tokens - 1, tasks = (tokens + OWN - 1) / OWN * keys * parts;
    const int block = blockIdx.x, kind = min(block / tasks, 2);  // key, value, query
    const Task task(block - kind * tasks, tokens);
    const Spans spans(spans_of, tokens, window);
    const Tiles<SIZE> tiles = {one, other};
    const auto of = [&](const T* from, int head) { return Matrix{from + Size(head) * tokens * SIZE, SIZE, last}; };
    const auto changes = [&](int head) { return Matrix{gradient + head * SIZE, queries * SIZE, last}; };
    const float by_scale[2] = {scale, scale}, ones[2] = {1, 1}, scale_2 = scale * LOG2_E;
    Results<SIZE> out;
    if (kind == 2) {
        const int same = task.head / (queries / keys);
        const Rows<SIZE> query_left(of(query, task.head), task.mine), change_left(changes(task.head), task.mine);
        const int first = spans.first(task.mine);
        float mean[2], sum[2];
        int back[2];
#pragma unroll
        for (int low = 0; low < 2; low++) {
            const int place = task.mine + Tile::row(2 * low);
            const Size at = Size(task.head) * tokens + min(place, last);
            mean[low] = means[at], sum[low] = sums[at], back[low] = spans.back(place);
        }
        tiles.pass(
            of(key, same), of(value, same), task.begin(spans), task.end(tokens), [](int, int) {},
            [&](const Stored<SIZE>* key_tile, const Stored<SIZE>* value_tile, int, int from) {
                if (!task.looks(from, tokens, first)) return;
                Tile scores = products(query_left, key_tile);
                const Tile changed = products(change_left, value_tile);
                const int before = task.mine - from;
#pragma unroll
                for (int number = 0; number < 8; number++) {
                    const int half = number / 4, at = number % 4, low = at / 2;
                    float& score = scores.halves[half][at];
                    const bool seen = sees(before + Tile::row(at) - Tile::column(half, at), back[low]);
                    const float weight = seen ? exp2_of(score * scale_2 - sum[low]) : 0;
                    score = weight * (changed.halves[half][at] - mean[low]);
                }
                out.add(scores, key_tile);
            }
        );
        out.store(d_query + Size(task.head) * tokens * SIZE, SIZE, task.mine, tokens, by_scale);
        return;
    }
    const int count = queries / keys / parts, end = spans.end(task.end(tokens) - 1), until = spans.end(task.mine + 15);
    const Rows<SIZE> key_left(of(key, task.head / parts), task.mine);
    const Rows<SIZE> value_left(of(value, task.head / parts), task.mine);
    const int on[2] = {spans.on(task.mine + Tile::row(0)), spans.on(task.mine + Tile::row(2))};
    for (int head = task.head * count; head < (task.head + 1) * count; head++) {
        const Size start = Size(head) * tokens;
        tiles.pass(
            of(query, head), changes(head), task.first, end,
            [&](int stage, int from) {
                const int place = threadIdx.x;
                if (place >= TILE) return;
                copy_one(sum_tiles[stage] + place, sums + start + min(from + place, last));
                copy_one(mean_tiles[stage] + place, means + start + min(from + place, last));
            },
            [&](const Stored<SIZE>* query_tile, const Stored<SIZE>* change_tile, int stage, int from) {
                if (!task.seen(from, tokens, until)) return;
                Tile scores = products(key_left, query_tile), changed;
                if (kind == 0) changed = products(value_left, change_tile);
                const int before = from - task.mine;
#pragma unroll
                for (int number = 0; number < 8; number++) {
                    const int half = number / 4, at = number % 4, place = Tile::column(half, at);
                    float& score = scores.halves[half][at];
                    const bool seen = sees(before + place - Tile::row(at), on[at / 2]);
                    const float weight = seen ? exp2_of(score * scale_2 - sum_tiles[stage][place]) : 0;
                    score = kind == 0 ? weight * (changed.halves[half][at] - mean_tiles[stage][place]) : weight;
                }
                out.add(scores, kind == 0 ? query_tile : change_tile);
            }
        );
    }
    T* to = (kind == 0 ? d_key : d_value) + Size(task.head) * tokens * SIZE;
    out.store(to, SIZE, task.mine, tokens, kind == 0 ? by_scale : ones);
}

#undef BOUNDS
#define BOUNDS __launch_bounds__(THREADS)
#define ATTEND(SIZE) \
    KERNEL(attend_##SIZE)( \
        const T* query, const T* key, const T* value, const int* spans, T* mixed, float* sums, int tokens, int queries, \
        int keys, int window, float scale \
    ) { \
        attend<SIZE>(query, key, value, spans, mixed, sums, tokens, queries, keys, window, scale); \
    }
#define ATTEND_MEANS(SIZE) \
    KERNEL(attend_means_##SIZE)( \
        const T* mixed, const T* gradient, float* means, int tokens, int queries \
    ) { \
        attend_means<SIZE>(mixed, gradient, means, tokens, queries); \
    }
#define ATTEND_BACK(SIZE) \
    KERNEL(attend_back_##SIZE)( \
        const T* query, const T* key, const T* value, const int* spans, const float* means, const float* sums, \
        const T* gradient, T* d_query, T* d_key, T* d_value, int tokens, int queries, int keys, int parts, int window, \
        float scale \
    ) { \
        attend_back<SIZE>( \
            query, key, value, spans, means, sums, gradient, d_query, d_key, d_value, tokens, queries, keys, parts, window, \
            scale \
        ); \
    }
#ifdef USE_attend_64
ATTEND(64)
#endif
#ifdef USE_attend_128
ATTEND(128)
#endif
#ifdef USE_attend_means_64
ATTEND_MEANS(64)
#endif
#ifdef USE_attend_means_128
ATTEND_MEANS(128)
#endif
#ifdef USE_attend_back_64
ATTEND_BACK(64)
#endif
#ifdef USE_attend_back_128
ATTEND_BACK(128)
#endif
