// y = silu(gate) up = gate sigma(gate) up, one thread an entry.
//
//   gate and up may be the two halves of one product: a row of width entries, and step entries to the next row
//
//   | gate 0 .. width-1 | up 0 .. width-1 |      <- step ->      threads run along the row

extern "C" __global__ void forward(const stored* gate, const stored* up, stored* y, long long rows, long long width,
                                   long long gate_step, long long up_step) {
  const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= rows * width) return;
  const long long n = at / width, i = at % width;
  const real z = gate[n * gate_step + i];
  y[at] = z * sigmoid(z) * up[n * up_step + i];
}

// dL/dgate = g up sigma (1 + gate (1 - sigma)),  dL/dup = g gate sigma
extern "C" __global__ void backward(const stored* g, const stored* gate, const stored* up, stored* grad_gate,
                                    stored* grad_up,
                                    long long rows, long long width, long long gate_step, long long up_step) {
  const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= rows * width) return;
  const long long n = at / width, i = at % width;
  const real z = gate[n * gate_step + i], sigma = sigmoid(z);
  grad_gate[at] = g[at] * up[n * up_step + i] * sigma * (1 + z * (1 - sigma));
  grad_up[at] = g[at] * z * sigma;
}
