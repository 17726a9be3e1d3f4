// SPDX-License-Identifier: Apache-2.0
// Inner loops of STRSAGA. Included once per instruction set. The steps of one learner depend on one another, so the
// latency of a step is what counts: w.x, one exponential, and one pass over w and the sum.

EDGEOPS_INLINE float exponential(float x) {
  return __builtin_expf(x);
}

EDGEOPS_INLINE double exponential(double x) {
  return __builtin_exp(x);
}

template <class T>
EDGEOPS_INLINE T horizontal(typename Lanes<T>::V v) {
  T sum = v[0];
  for (int i = 1; i < Lanes<T>::n; ++i) {
    sum += v[i];
  }
  return sum;
}

// Four chains of sums, so that they hide each other's latency.
template <class T>
EDGEOPS_INLINE T dot_product(const T* a, const T* b, int64_t d) {
  typedef typename Lanes<T>::V V;
  constexpr int64_t L = Lanes<T>::n;
  T sum = T(0);
  int64_t k = 0;
  if (d >= L) {
    V part[4] = {V{}, V{}, V{}, V{}};
    for (; k + 4 * L <= d; k += 4 * L) {
      for (int u = 0; u < 4; ++u) {
        part[u] += vload<T>(a + k + u * L) * vload<T>(b + k + u * L);
      }
    }
    for (; k + L <= d; k += L) {
      part[0] += vload<T>(a + k) * vload<T>(b + k);
    }
    sum = horizontal<T>((part[0] + part[1]) + (part[2] + part[3]));
  }
  for (; k < d; ++k) {
    sum += a[k] * b[k];
  }
  return sum;
}

template <class T>
EDGEOPS_INLINE void step_of(T* w, T* sum, const T* x, int64_t d, T keep, T back, T change, T eta_change) {
  typedef typename Lanes<T>::V V;
  constexpr int64_t L = Lanes<T>::n;
  const V v_keep = vset<T>(keep), v_back = vset<T>(back), v_change = vset<T>(change), v_eta = vset<T>(eta_change);
  int64_t k = 0;
  for (; k + L <= d; k += L) {
    const V point = vload<T>(x + k), s = vload<T>(sum + k);
    vstore<T>(w + k, v_keep * vload<T>(w + k) - v_eta * point - v_back * s);
    vstore<T>(sum + k, s + v_change * point);
  }
  for (; k < d; ++k) {
    w[k] = keep * w[k] - eta_change * x[k] - back * sum[k];
    sum[k] = sum[k] + change * x[k];
  }
}

// kD: the number of features where it is known when this is compiled, else 0.
template <class T, int64_t kD>
EDGEOPS_INLINE void run_steps(const Turn& turn) {
  const int64_t d = kD ? kD : turn.d;
  const T* points = static_cast<const T*>(turn.x);
  const T* labels = static_cast<const T*>(turn.y);
  T* alpha = static_cast<T*>(turn.alpha);
  T room_w[kD ? kD : 1], room_sum[kD ? kD : 1];
  T* w = kD ? room_w : static_cast<T*>(turn.w);
  T* sum = kD ? room_sum : static_cast<T*>(turn.sum);
  if constexpr (kD > 0) {
    __builtin_memcpy(room_w, turn.w, sizeof(room_w));
    __builtin_memcpy(room_sum, turn.sum, sizeof(room_sum));
  }
  const T eta = static_cast<T>(turn.eta), keep = static_cast<T>(1 - turn.eta * turn.mu);
  int64_t end = turn.end;
  T back = eta / static_cast<T>(end > turn.start ? end - turn.start : 1);
  for (int64_t s = 0; s < turn.count; ++s) {
    const int64_t i = turn.order[s];
    const T* x = points + i * d;
    const T y = labels[i];
    const T g = -y / (T(1) + exponential(y * dot_product<T>(w, x, d)));
    const bool fresh = i == end;
    const T change = g - (fresh ? T(0) : alpha[i]);
    step_of<T>(w, sum, x, d, keep, back, change, eta * change);
    alpha[i] = g;
    if (fresh) {
      ++end;
      back = eta / static_cast<T>(end - turn.start);
    }
  }
  if constexpr (kD > 0) {
    __builtin_memcpy(turn.w, room_w, sizeof(room_w));
    __builtin_memcpy(turn.sum, room_sum, sizeof(room_sum));
  }
}

template <class T>
static void run_turn(const Turn& turn) {
  switch (turn.d) {
    case 3:
      return run_steps<T, 3>(turn);
    case 4:
      return run_steps<T, 4>(turn);
    case 5:
      return run_steps<T, 5>(turn);
    default:
      return run_steps<T, 0>(turn);
  }
}
