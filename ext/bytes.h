/*
** Little-endian numbers at any address, as all of Balsa's formats have them.
*/
#ifndef BALSA_BYTES_H
#define BALSA_BYTES_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

static inline void le16_put(void *bytes, uint16_t value) {
  value = htole16(value);
  memcpy(bytes, &value, sizeof value);
}

static inline void le32_put(void *bytes, uint32_t value) {
  value = htole32(value);
  memcpy(bytes, &value, sizeof value);
}

static inline void le64_put(void *bytes, uint64_t value) {
  value = htole64(value);
  memcpy(bytes, &value, sizeof value);
}

static inline uint16_t le16_get(const void *bytes) {
  uint16_t value;
  memcpy(&value, bytes, sizeof value);
  return le16toh(value);
}

static inline uint32_t le32_get(const void *bytes) {
  uint32_t value;
  memcpy(&value, bytes, sizeof value);
  return le32toh(value);
}

static inline uint64_t le64_get(const void *bytes) {
  uint64_t value;
  memcpy(&value, bytes, sizeof value);
  return le64toh(value);
}

#endif
