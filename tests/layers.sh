#!/bin/sh
# The include rules of the folders, checked twice: by what the sources include, and by what
# their objects call.
#
#   sh tests/layers.sh nm folder-of-core-objects
#
#   raft/          the pure core: libc without time, randomness, threads and I/O; its own headers
#   raft/io/       libuv, xxHash, the core, ext/{os,slot_file,bytes}.h
#   vfs/           SQLite, LZ4, xxHash, ext/{os,slot_file,bytes}.h; never Raft
#   snapshot/      SQLite, LZ4, xxHash, vfs/, ext/{os,slot_file,bytes}.h; never Raft
#   ext/           everything; ext/balsa.h, being public, only sqlite3.h and libc
#   shell/         ext/balsa.h
# And nobody but ext/os.c asks the machine for time, randomness or a thread.

nm=$1
objects=$2
failed=0
passed=0

check() { # name, offending lines
  if [ -n "$2" ]; then
    printf 'layers: %s\n%s\n' "$1" "$2"
    failed=$((failed + 1))
  else
    passed=$((passed + 1))
  fi
}

# Includes of the files in "$2…" that the pattern $1 does not allow, with file and line.
includes_but() {
  allowed=$1
  shift
  for file; do
    [ -f "$file" ] || continue
    grep -nE '^[[:space:]]*#[[:space:]]*include' "$file" | sed 's/#[[:space:]]*include[[:space:]]*/#include /' |
      grep -vE "#include ($allowed)" | sed "s|^|$file:|"
  done
}

pure='<(assert|errno|inttypes|limits|stdalign|stdarg|stdbool|stddef|stdint|stdio|stdlib|string)\.h>'
libc='<[a-z0-9_/]+\.h>'
own='"[a-z0-9_]+\.h"'
os='"(\.\./)+ext/(os|slot_file|bytes)\.h"'
foreign='<(uv|sqlite3|sqlite3ext|lz4|lz4frame|lz4hc|xxhash|cmocka)\.h>'

# Like includes_but, for folders that may use all of libc: foreign libraries must be allowed by name.
folder_includes() {
  allowed=$1
  shift
  includes_but "$libc|$allowed" "$@"
  for file; do
    [ -f "$file" ] || continue
    grep -nE "#[[:space:]]*include[[:space:]]*$foreign" "$file" | grep -vE "#[[:space:]]*include[[:space:]]*($allowed)" | sed "s|^|$file:|"
  done
}

check 'raft/ includes more than plain libc and itself' "$(includes_but "$pure|$own" raft/*.c raft/*.h)"
check 'raft/io/ includes what it may not' \
  "$(folder_includes "<(uv|xxhash)\.h>|$own|\"\.\./[a-z0-9_]+\.h\"|$os" raft/io/*.c raft/io/*.h)"
check 'vfs/ includes what it may not' \
  "$(folder_includes "<(sqlite3|sqlite3ext|lz4|lz4hc|xxhash)\.h>|$own|$os" vfs/*.c vfs/*.h)"
check 'snapshot/ includes what it may not' \
  "$(folder_includes "<(sqlite3|sqlite3ext|lz4|lz4frame|lz4hc|xxhash)\.h>|$own|\"\.\./vfs/[a-z0-9_]+\.h\"|$os" snapshot/*.c snapshot/*.h)"
check 'ext/balsa.h includes more than a user has' "$(includes_but '<(sqlite3|stdbool|stddef|stdint)\.h>' ext/balsa.h)"
check 'shell/ includes more than ext/balsa.h' \
  "$(folder_includes "<(sqlite3)\.h>|$own|\"\.\./ext/balsa\.h\"" shell/*.c shell/*.h)"

# Symbols that objects leave open, as "object symbol".
open_symbols() {
  for object; do
    [ -f "$object" ] || continue
    "$nm" -u "$object" | awk -v object="${object#"$objects"/}" '{ sub(/@.*/, "", $2); print object, $2 }'
  done
}

# What the pure core may call. Sanitized builds bring helpers of their own (__asan_…).
pure_calls='raft_.*|mem(cpy|move|set|cmp|chr)|str(len|nlen|cmp|ncmp|chr|rchr)|malloc|calloc|realloc|free|qsort|bsearch|v?snprintf|abort|__assert_fail|__stack_chk_fail|_GLOBAL_OFFSET_TABLE_|__(mem|v?snprintf|str)[a-z]*_chk|__[atu]b?san_.*|__isoc99_.*|__errno_location'
check 'raft/ calls more than it may' "$(open_symbols "$objects"/raft/*.o | grep -vE " ($pure_calls)\$")"

machine='clock_gettime|gettimeofday|time|clock|nanosleep|clock_nanosleep|usleep|sleep|rand|srand|random|srandom|rand_r|drand48|getrandom|getentropy|arc4random|sqlite3_randomness|pthread_create|pthread_cond_timedwait|pthread_cond_clockwait'
check 'only ext/os.c may ask the machine for time, randomness or a thread' \
  "$(open_symbols "$objects"/raft/io/*.o "$objects"/vfs/*.o "$objects"/snapshot/*.o "$objects"/ext/*.o |
    grep -E " ($machine)\$" | grep -v '^ext/os\.o ')"

printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
