// What comes before the layers and behind them: rows by their indices, and an adapter's entries.

// Rows of a matrix (size, width), of zeros where the index is none of its. A thread takes four columns.
#ifdef USE_rows
KERNEL(rows)(const T* matrix, const int* indices, T* out, int count, int width, int size) {
    const Size place = (Size(blockIdx.x) * blockDim.x + threadIdx.x) * 4, row = place / width;
    if (row >= count) return;
    const int index = indices[row];
    Four from = {};
    if (index >= 0 && index < size) from = four(matrix + Size(index) * width + place % width);
    *(Four*)(out + place) = from;
}
#endif

// Entries of a vector of `size`, each times its own scale; zeros where the index is none of its.
#ifdef USE_entries
KERNEL(entries)(const float* vector, const float* scales, const int* indices, T* out, int count, int size) {
    const int place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= count) return;
    const int index = indices[place];
    out[place] = put(index >= 0 && index < size ? vector[index] * scales[index] : 0.0f);
}
#endif

// The way back: each entry's gradient lies somewhere among the parts.
#ifdef USE_entries_back
KERNEL(entries_back)(const T* parts, const float* scales, const int* places, float* out, int size) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < size) out[index] = get(parts[places[index]]) * scales[index];
}
#endif
