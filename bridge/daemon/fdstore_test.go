package daemon

import (
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vdbridge/bridge"
)

// serviceManager keeps descriptors as systemd does, and hands them to the next daemon.
type serviceManager struct {
	t  *testing.T
	c  *net.UnixConn
	mu sync.Mutex
	fd map[string]int
	wg sync.WaitGroup
}

func newServiceManager(t *testing.T) (*serviceManager, *systemdStore) {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := &serviceManager{t: t, c: c, fd: map[string]int{}}
	m.wg.Go(m.run)
	t.Cleanup(func() {
		c.Close()
		m.wg.Wait()
		for _, fd := range m.fd {
			unix.Close(fd)
		}
	})
	return m, &systemdStore{func(k string) string {
		if k == "NOTIFY_SOCKET" {
			return path
		}
		return ""
	}}
}

func (m *serviceManager) run() {
	b, oob := make([]byte, 4096), make([]byte, 256)
	for {
		n, on, _, _, err := m.c.ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		state := string(b[:n])
		_, name, _ := strings.Cut(state, "FDNAME=")
		m.mu.Lock()
		switch {
		case strings.HasPrefix(state, "FDSTORE=1\n"):
			msgs, err := unix.ParseSocketControlMessage(oob[:on])
			if err != nil || len(msgs) != 1 {
				m.t.Errorf("%q came without a descriptor", state)
				break
			}
			if fds, err := unix.ParseUnixRights(&msgs[0]); err == nil && len(fds) == 1 {
				m.fd[name] = fds[0]
			}
		case strings.HasPrefix(state, "FDSTOREREMOVE=1\n"):
			unix.Close(m.fd[name])
			delete(m.fd, name)
		}
		m.mu.Unlock()
	}
}

func (m *serviceManager) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.fd)
}

// handed is the store of a daemon that was started with the kept descriptors.
type handed struct {
	*systemdStore
	m *serviceManager
}

func (h handed) Take() map[string]map[string]string {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	all := map[string]map[string]string{}
	for name, fd := range h.m.fd {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			h.m.t.Fatal(err)
		}
		for k, v := range takeSecrets(dup, 1, []string{name}) {
			all[k] = v
		}
	}
	return all
}

// A password that was typed survives a restart of the service in the service manager's hands, and is gone with its attachment.
func TestServiceManagerKeepsPasswords(t *testing.T) {
	sm, store := newServiceManager(t)
	b := newBench(t)
	b.cfg.Secrets = store
	m := b.manager()
	a, err := m.Attach(t.Context(), spec(url), map[string]string{bridge.PasswordEnv: "correct horse", "USER": "u"})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(strings.Join(a.Warnings, " "), "by hand") {
		t.Errorf("warned without need: %q", a.Warnings)
	}
	until(t, "the password is kept", func() bool { return sm.count() == 1 })
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	b.cfg.Secrets = handed{store, sm}
	m = b.manager()
	if n, err := m.Resume(); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	until(t, "the device is back", func() bool { return m.Status()[0].State == StateAttached })
	b.mu.Lock()
	if b.env[bridge.PasswordEnv] != "correct horse" || b.env["USER"] != "u" {
		t.Errorf("opened with %d variables", len(b.env))
	}
	b.mu.Unlock()
	if _, err := m.Detach(t.Context(), &Request{Target: url}); err != nil {
		t.Fatal(err)
	}
	until(t, "the password is dropped", func() bool { return sm.count() == 0 })
}

// Descriptors that are not ours, or not sealed, are left alone.
func TestTakeSecretsIsCareful(t *testing.T) {
	fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if got := takeSecrets(fd, 1, []string{secretName + "00"}); len(got) != 0 {
		t.Errorf("a file that anybody can change is believed: %v", got)
	}
	if got := takeSecrets(1<<20, 2, []string{"socket"}); len(got) != 0 {
		t.Errorf("%v", got)
	}
	s := &systemdStore{func(k string) string { return map[string]string{"LISTEN_PID": "1", "LISTEN_FDS": "5"}[k] }}
	if got := s.Take(); got != nil {
		t.Errorf("descriptors of another process: %v", got)
	}
}
