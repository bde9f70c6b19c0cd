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
