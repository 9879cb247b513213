package svhdx

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"vdbridge/scsi"
	"vdbridge/scsi/lu"
	"vdbridge/smb/wire"
)

// maxStateFile bounds the file of reservations, in bytes: 1024 registrations need less.
const maxStateFile = 4 << 20

// fileState keeps reservations in a file.
type fileState struct {
	path string
	id   wire.GUID
	log  *slog.Logger
}

// FileState keeps the reservations of the disk at path in the hidden file .NAME.reservations beside it, which exists only while there is
// something to keep. Each change replaces the file as a whole, and is durable when Save returns. A file that is damaged is an
// error: whoever decides that its reservations may be forgotten removes it. A file of another disk (with another identifier) is ignored.
func FileState(path string, id wire.GUID, log *slog.Logger) lu.PersistentState {
	dir, name := filepath.Split(path)
	return &fileState{filepath.Join(dir, "."+name+".reservations"), id, log}
}

// stateFile is the file: a state and the SHA-256 of its bytes.
type stateFile struct {
	Sum   string          `json:"sha256"`
	State json.RawMessage `json:"state"`
}

type stateBody struct {
	Version       int                 `json:"version"` // 1, or 2 if opens survive the process
	Disk          string              `json:"disk"`
	Held          bool                `json:"held"`
	Type          scsi.PRType         `json:"type"`
	Holder        string              `json:"holder"`
	Registrations []stateRegistration `json:"registrations"`

	// Of version 2.
	PowerLoss  bool             `json:"aptpl,omitempty"`
	Generation uint32           `json:"generation,omitempty"`
	Attentions []stateAttention `json:"attentions,omitempty"`
	Done       []stateDone      `json:"done,omitempty"`
}

type stateAttention struct {
	Initiator string    `json:"initiator"`
	Code      scsi.Code `json:"code"`
}

type stateDone struct {
	Initiator string `json:"initiator"`
	Request   string `json:"request"`
	Sum       string `json:"sum"`
}

type stateRegistration struct {
	Initiator string `json:"initiator"`
	Key       uint64 `json:"key,string"`
	AllPorts  bool   `json:"all_ports"`
}

func (f *fileState) Load(context.Context) (*lu.State, error) {
	file, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxStateFile+1))
	if err != nil {
		return nil, err
	}
	s, disk, err := decodeState(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; remove the file if nobody relies on the reservations in it", f.path, err)
	}
	if disk != hex.EncodeToString(f.id[:]) {
		f.log.Warn("reservations of another disk ignored", "file", f.path)
		return nil, nil
	}
	return s, nil
}

func decodeState(b []byte) (s *lu.State, disk string, err error) {
	if len(b) > maxStateFile {
		return nil, "", fmt.Errorf("the file of reservations is longer than %d bytes", maxStateFile)
	}
	var file stateFile
	var body stateBody
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, "", fmt.Errorf("the file of reservations is damaged: %w", err)
	}
	if sum := sha256.Sum256(file.State); hex.EncodeToString(sum[:]) != file.Sum {
		return nil, "", errors.New("the file of reservations is damaged: its checksum is wrong")
	}
	if err := json.Unmarshal(file.State, &body); err != nil {
		return nil, "", fmt.Errorf("the file of reservations is damaged: %w", err)
	}
	if body.Version != 1 && body.Version != 2 {
		return nil, "", fmt.Errorf("the file of reservations has format version %d, only 1 and 2 are known", body.Version)
	}
	s = &lu.State{Held: body.Held, Type: body.Type, PowerLoss: body.Version == 1}
	if body.Version == 2 {
		s.Survives, s.PowerLoss, s.Generation = true, body.PowerLoss, body.Generation
	}
	id := func(to *lu.InitiatorID, text string) {
		if n, e := hex.Decode(to[:], []byte(text[:min(len(text), 2*len(to))])); err == nil && (e != nil || n != len(to) || len(text) != 2*len(to)) {
			err = fmt.Errorf("the file of reservations is damaged: %q is no initiator", text)
		}
	}
	id(&s.Holder, body.Holder)
	for _, r := range body.Registrations {
		saved := lu.SavedRegistration{Key: r.Key, AllPorts: r.AllPorts}
		id(&saved.Initiator, r.Initiator)
		s.Registrations = append(s.Registrations, saved)
	}
	for _, a := range body.Attentions {
		saved := lu.SavedAttention{Code: a.Code}
		id(&saved.Initiator, a.Initiator)
		s.Attentions = append(s.Attentions, saved)
	}
	for _, d := range body.Done {
		var saved lu.SavedCommand
		id(&saved.Initiator, d.Initiator)
		id((*lu.InitiatorID)(&saved.Tag.Request), d.Request)
		sum, e := hex.DecodeString(d.Sum)
		if n := copy(saved.Tag.Sum[:], sum); err == nil && (e != nil || n != len(sum) || n != len(saved.Tag.Sum)) {
			err = fmt.Errorf("the file of reservations is damaged: %q is no sum of a command", d.Sum)
		}
		s.Done = append(s.Done, saved)
	}
	return s, body.Disk, err
}

func encodeState(s *lu.State, disk wire.GUID) ([]byte, error) {
	body := stateBody{Version: 1, Disk: hex.EncodeToString(disk[:]), Held: s.Held, Type: s.Type, Holder: hex.EncodeToString(s.Holder[:])}
	for _, r := range s.Registrations {
		body.Registrations = append(body.Registrations, stateRegistration{hex.EncodeToString(r.Initiator[:]), r.Key, r.AllPorts})
	}
	if s.Survives {
		body.Version, body.PowerLoss, body.Generation = 2, s.PowerLoss, s.Generation
		for _, a := range s.Attentions {
			body.Attentions = append(body.Attentions, stateAttention{hex.EncodeToString(a.Initiator[:]), a.Code})
		}
		for _, d := range s.Done {
			body.Done = append(body.Done, stateDone{hex.EncodeToString(d.Initiator[:]), hex.EncodeToString(d.Tag.Request[:]), hex.EncodeToString(d.Tag.Sum[:])})
		}
	}
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	b, err = json.Marshal(stateFile{hex.EncodeToString(sum[:]), b})
	return append(bytes.TrimSpace(b), '\n'), err
}

func (f *fileState) Save(_ context.Context, s *lu.State) error {
	dir := filepath.Dir(f.path)
	if s == nil || len(s.Registrations) == 0 && !s.Survives {
		err := os.Remove(f.path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return errors.Join(err, syncDir(dir))
	}
	b, err := encodeState(s, f.id)
	if err == nil && len(b) > maxStateFile {
		err = fmt.Errorf("%d bytes of reservations are too many", len(b))
	}
	if err != nil {
		return err
	}
	// One name is enough, since the disk is locked and saves do not overlap; what a crash has left is replaced, but never followed.
	name := f.path + ".new"
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	if err == nil {
		err = tmp.Sync()
	}
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(name, f.path)
	}
	if err != nil {
		_ = os.Remove(name)
		return err
	}
	return syncDir(dir)
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
