package tlspsk

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
)

// Bounds of a key file.
const (
	minKey      = 16 // bytes; what is shorter can be guessed
	maxKey      = 512
	maxIdentity = 256
)

// LoadKeys reads a file of lines NAME:KEY, the key in hexadecimal digits, as psktool of GnuTLS writes it and as nbdkit and QEMU take it. Empty lines and
// those that begin with # are passed over. An error names the line.
func LoadKeys(path string) (Keys, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	keys := Keys{}
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, digits, ok := strings.Cut(line, ":")
		key, err := hex.DecodeString(digits)
		switch {
		case !ok || name == "" || len(name) > maxIdentity:
			return nil, fmt.Errorf("%s, line %d: not of the form NAME:KEY", path, n)
		case err != nil:
			return nil, fmt.Errorf("%s, line %d: the key is not an even number of hexadecimal digits", path, n)
		case len(key) < minKey || len(key) > maxKey:
			return nil, fmt.Errorf("%s, line %d: the key has %d bytes, and must have %d to %d", path, n, len(key), minKey, maxKey)
		case keys[name] != nil:
			return nil, fmt.Errorf("%s, line %d: %q is there twice", path, n, name)
		}
		keys[name] = key
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s: there is no key in it", path)
	}
	return keys, nil
}
