// SPDX-License-Identifier: Apache-2.0
// Whole vectors of a row and what is left of it. Included once per instruction set.

// Calls body(vector position, count) on whole vectors, then once on the rest.
template <class T, class Body>
EDGEOPS_INLINE void column_lanes(int64_t n, const Body& body) {
  constexpr int w = Lanes<T>::n;
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    body(i, static_cast<int64_t>(w));
  }
  if (i < n) {
    body(i, n - i);
  }
}

template <class T>
EDGEOPS_INLINE typename Lanes<T>::V column_get(const T* p, int64_t n) {
  constexpr int w = Lanes<T>::n;
  if (n >= w) {
    return vload<T>(p);
  }
  T room[w] = {};
  for (int64_t i = 0; i < n; ++i) {
    room[i] = p[i];
  }
  return vload<T>(room);
}

template <class T>
EDGEOPS_INLINE void column_put(T* p, typename Lanes<T>::V v, int64_t n) {
  constexpr int w = Lanes<T>::n;
  if (n >= w) {
    return vstore<T>(p, v);
  }
  T room[w];
  vstore<T>(room, v);
  for (int64_t i = 0; i < n; ++i) {
    p[i] = room[i];
  }
}
