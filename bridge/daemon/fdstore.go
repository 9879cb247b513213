package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// SecretStore keeps passwords that were given by hand for the next daemon, where nobody else can read them. Its methods may be called at the same time.
type SecretStore interface {
	// Keep keeps the secret variables of an attachment.
	Keep(backend string, env map[string]string) error
	// Drop forgets them.
	Drop(backend string)
	// Take returns what an earlier process has kept, by backend. It is called once.
	Take() map[string]map[string]string
}

// systemdStore keeps secrets in memory files whose descriptors the service manager holds while the service is restarted (sd_notify(3), FDSTORE=1; the unit needs
// FileDescriptorStoreMax=). They are never on a disk.
type systemdStore struct{ getenv func(string) string }

// SystemdSecrets is the service manager's store, or nil if no service manager has started this process.
func SystemdSecrets() SecretStore {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	return &systemdStore{os.Getenv}
}

const (
	secretName  = "secret-"
	maxSecret   = 64 << 10
	firstListen = 3 // sd_listen_fds(3)
	maxListen   = 4096
)

func secretOf(backend string) string { return secretName + strings.TrimPrefix(backend, backendPrefix) }

func (s *systemdStore) Keep(backend string, env map[string]string) error {
	secrets := map[string]string{}
	for _, k := range SecretEnv {
		if env[k] != "" {
			secrets[k] = env[k]
		}
	}
	b, err := json.Marshal(secrets)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("vdbridge", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fmt.Errorf("memory file: %w", err)
	}
	f := os.NewFile(uintptr(fd), "secret")
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return fmt.Errorf("memory file: %w", err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return fmt.Errorf("memory file: %w", err)
	}
	return s.notify("FDSTORE=1\nFDNAME="+secretOf(backend), f)
}

func (s *systemdStore) Drop(backend string) {
	_ = s.notify("FDSTOREREMOVE=1\nFDNAME="+secretOf(backend), nil)
}

// notify sends a state, with a descriptor, to the service manager.
func (s *systemdStore) notify(state string, f *os.File) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("service manager: %w", err)
	}
	defer unix.Close(fd)
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	// A name that begins with @ is an abstract one, here as there.
	if err := unix.Sendmsg(fd, []byte(state), rights, &unix.SockaddrUnix{Name: s.getenv("NOTIFY_SOCKET")}, 0); err != nil {
		return fmt.Errorf("service manager: %w", err)
	}
	return nil
}

func (s *systemdStore) Take() map[string]map[string]string {
	if s.getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil
	}
	n, err := strconv.Atoi(s.getenv("LISTEN_FDS"))
	if err != nil || n < 0 || n > maxListen {
		return nil
	}
	return takeSecrets(firstListen, n, strings.Split(s.getenv("LISTEN_FDNAMES"), ":"))
}

// takeSecrets reads the memory files among n descriptors from first on, and closes those.
func takeSecrets(first, n int, names []string) map[string]map[string]string {
	all := map[string]map[string]string{}
	for i := range min(n, len(names)) {
		id, ok := strings.CutPrefix(names[i], secretName)
		if !ok {
			continue
		}
		f := os.NewFile(uintptr(first+i), "secret")
		env, err := readSecret(f)
		if f.Close(); err == nil {
			all[backendPrefix+id] = env
		}
	}
	return all
}

func readSecret(f *os.File) (map[string]string, error) {
	if seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil || seals&unix.F_SEAL_WRITE == 0 {
		return nil, errors.New("not a sealed memory file")
	}
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxSecret))
	if err != nil {
		return nil, err
	}
	env := map[string]string{}
	return env, json.Unmarshal(b, &env)
}
