// What stands between a layer's matrix products, for sqlora.train.cuda.kernels, which compiles this file with NVRTC.
// T is the arrays' type; `get` and `put` turn it into float and back, and all sums are of floats.
// KERNEL(name) declares a kernel. tests/unit/test_kernels.py runs this file on a CPU.

typedef unsigned long long Size;

// The pair of numbers that a thread turns. Heads lie token after token in `whole`, and head after head in `part`, where
// queries, keys and values are arrays of their own. turns: each pair's angle at position 1; values are not turned.
struct Pair {
    float sine, cosine;
    int kind;
    Size whole, part;
};

__device__ inline bool find(Pair& pair, const float* turns, int rows, int length, int queries, int keys, int size) {
    const unsigned pairs = size / 2, all = queries + 2 * keys, index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= rows * length * all * pairs) return false;
    const unsigned number = index % pairs, head = index / pairs % all, token = index / pairs / all;
    const unsigned row = token / length, place = token % length;
    pair.kind = head < queries ? 0 : head < queries + keys ? 1 : 2;
    pair.sine = 0, pair.cosine = 1;
    if (pair.kind < 2) sincosf(place * turns[number], &pair.sine, &pair.cosine);
    const unsigned count = pair.kind ? keys : queries, mine = pair.kind ? (head - queries) % keys : head;
    pair.whole = Size(token * all + head) * size + number;
    pair.part = Size((row * count + mine) * length + place) * size + number;
    return true;
}

KERNEL(turn)(
    const T* heads, const float* turns, T* query, T* key, T* value, int rows, int length, int queries, int keys, int size
) {
    Pair pair;
    if (!find(pair, turns, rows, length, queries, keys, size)) return;
    T* to = pair.kind == 0 ? query : pair.kind == 1 ? key : value;
    const float first = get(heads[pair.whole]), second = get(heads[pair.whole + size / 2]);
    to[pair.part] = put(first * pair.cosine - second * pair.sine);
    to[pair.part + size / 2] = put(first * pair.sine + second * pair.cosine);
}

KERNEL(turn_back)(
    const T* query, const T* key, const T* value, const float* turns, T* heads, int rows, int length, int queries,
    int keys, int size
) {
    Pair pair;
    if (!find(pair, turns, rows, length, queries, keys, size)) return;
    const T* from = pair.kind == 0 ? query : pair.kind == 1 ? key : value;
    const float first = get(from[pair.part]), second = get(from[pair.part + size / 2]);
    heads[pair.whole] = put(first * pair.cosine + second * pair.sine);
    heads[pair.whole + size / 2] = put(second * pair.cosine - first * pair.sine);
}

__device__ inline float sum_of_warp(float value) {
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// A warp takes one row. What a causal mask hides, or a window if it is not 0, gets the weight 0.
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

// A block takes one row: rest + the gradient of the norm's input.
KERNEL(norm_back)(
    const T* state, const T* weight, const T* gradient, const T* rest, T* out, int width, float eps
) {
    __shared__ float squares[32], products[32];
    const Size start = Size(blockIdx.x) * width;
    float square = 0, product = 0;
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        const float x = get(state[start + column]);
        square += x * x;
        product += x * get(gradient[start + column]) * get(weight[column]);
    }
    square = sum_of_warp(square), product = sum_of_warp(product);
    if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = square, products[threadIdx.x / 32] = product;
    __syncthreads();
    square = product = 0;
    for (int warp = 0; warp < int(blockDim.x / 32); warp++) square += squares[warp], product += products[warp];
    const float inverse = rsqrtf(square / width + eps), share = product * inverse * inverse * inverse / width;
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        const float turned = get(gradient[start + column]) * get(weight[column]) * inverse;
        out[start + column] = put(get(rest[start + column]) + turned - get(state[start + column]) * share);
    }
}
