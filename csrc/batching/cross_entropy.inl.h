// SPDX-License-Identifier: Apache-2.0
// Cross entropy of rows of scores. Included by cells.inl.h, once per instruction set.
//
// Every row is computed by itself: NaN stays in its row, and no bit depends on the other rows.

// e^(x - most), the largest of the row taken off.
template <class T>
EDGEOPS_INLINE typename Lanes<T>::V shifted_exp(typename Lanes<T>::V x, T most) {
  return vexp2((x - most) * T(1.4426950408889634));
}

// Scores become probabilities; loss = log(sum e^score) - the label's score.
template <class St>
static void cross_entropy_fwd(const CrossEntropy& g, int64_t begin, int64_t end) {
  typedef typename St::S S;
  typedef typename St::T T;
  typedef typename Lanes<T>::V V;
  constexpr int n = Lanes<T>::n;
  for (int64_t i = begin; i < end; ++i) {
    S* x = static_cast<S*>(g.scores) + i * g.scores_row;
    const int64_t whole = g.classes / n * n, rest = g.classes - whole;
    T room[kSpill], most = -__builtin_inff(), label = 0;
    widen<St>(x + g.labels[i], &label, 1);
    if (whole > 0) {
      V m = take<St, true>(x, n);
      for (int64_t j = n; j < whole; j += n) {
        m = vmax<T>(m, take<St, true>(x + j, n));
      }
      vstore<T>(room, m);
      for (int k = 0; k < n; ++k) {
        most = room[k] > most ? room[k] : most;
      }
    }
    if (rest > 0) {
      vstore<T>(room, take<St, false>(x + whole, rest));
      for (int64_t k = 0; k < rest; ++k) {
        most = room[k] > most ? room[k] : most;
      }
    }
    V sums = {};
    for (int64_t j = 0; j < whole; j += n) {
      const V e = shifted_exp<T>(take<St, true>(x + j, n), most);
      sums += e;
      give<St, true>(x + j, e, n);
    }
    vstore<T>(room, sums);
    T sum = 0;
    for (int k = 0; k < n; ++k) {
      sum += room[k];
    }
    if (rest > 0) {
      const V e = shifted_exp<T>(take<St, false>(x + whole, rest), most);
      vstore<T>(room, e);
      for (int64_t k = 0; k < rest; ++k) {
        sum += room[k];
      }
      give<St, false>(x + whole, e, rest);
    }
    const T over = T(1) / sum;
    for (int64_t j = 0; j < whole; j += n) {
      give<St, true>(x + j, take<St, true>(x + j, n) * over, n);
    }
    if (rest > 0) {
      give<St, false>(x + whole, take<St, false>(x + whole, rest) * over, rest);
    }
    const T loss = static_cast<T>(__builtin_log(static_cast<double>(sum))) + (most - label);
    narrow<St>(&loss, static_cast<S*>(g.loss) + i * g.loss_row, 1);
  }
}

// dscores = (probabilities - 1 at the label) * the loss's gradient.
template <class St>
static void cross_entropy_bwd(const CrossEntropy& g, int64_t begin, int64_t end) {
  typedef typename St::S S;
  typedef typename St::T T;
  constexpr int n = Lanes<T>::n;
  for (int64_t i = begin; i < end; ++i) {
    const S* x = static_cast<const S*>(g.scores) + i * g.scores_row;
    S* dx = static_cast<S*>(g.dscores) + i * g.dscores_row;
    T up = 0, label = 0;
    widen<St>(static_cast<const S*>(g.loss) + i * g.loss_row, &up, 1);
    int64_t j = 0;
    for (; j + n <= g.classes; j += n) {
      give<St, true>(dx + j, take<St, true>(x + j, n) * up, n);
    }
    if (j < g.classes) {
      give<St, false>(dx + j, take<St, false>(x + j, g.classes - j) * up, g.classes - j);
    }
    widen<St>(x + g.labels[i], &label, 1);
    label = (label - 1) * up;
    narrow<St>(&label, dx + g.labels[i], 1);
  }
}
