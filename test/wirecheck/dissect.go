package wirecheck

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"vdbridge/test/lab"
)

// Message is one SMB2 message as tshark reads it. A compound is several.
type Message struct {
	Frame    int
	Command  string // NEGOTIATE, SESSION_SETUP, …
	Response bool
	Status   uint32 // of a response
	Sealed   bool
	Fields   map[string][]string // what tshark shows, by field name, for instance "smb2.filename"
}

// String is one line, for failures.
func (m Message) String() string {
	if m.Response {
		return fmt.Sprintf("%s reply (0x%08x)", m.Command, m.Status)
	}
	return m.Command
}

// Field returns the first value of a field, or "".
func (m Message) Field(name string) string {
	if v := m.Fields[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// commands in the order of their codes, [MS-SMB2] 2.2.1.2.
var commands = []string{"NEGOTIATE", "SESSION_SETUP", "LOGOFF", "TREE_CONNECT", "TREE_DISCONNECT", "CREATE", "CLOSE", "FLUSH", "READ", "WRITE",
	"LOCK", "IOCTL", "CANCEL", "ECHO", "QUERY_DIRECTORY", "CHANGE_NOTIFY", "QUERY_INFO", "SET_INFO", "OPLOCK_BREAK"}

// severities of tshark's expert information that are problems, by the number that it has in PDML.
var severities = map[string]string{"8388608": "error", "6291456": "warning"}

// Problem is something in a capture that tshark does not like: a malformed packet, or what its expert information calls an error or a warning.
type Problem struct {
	Frame int
	Text  string
}

// String is one line.
func (p Problem) String() string { return fmt.Sprintf("frame %d: %s", p.Frame, p.Text) }

// Dissect reads a capture with tshark, with the session keys from path+".keys" if that exists. With verify it also checks signatures, which
// tshark 4.0 knows how to do for HMAC-SHA256 and AES-CMAC; AES-GMAC always looks wrong to it.
func Dissect(ctx context.Context, path string, verify bool) (messages []Message, problems []Problem, err error) {
	tshark, err := lab.Look("tshark")
	if err != nil {
		return nil, nil, err
	}
	args := []string{"-r", path, "-T", "pdml", "-o", fmt.Sprintf("smb2.verify_signatures:%t", verify)}
	keys, err := os.ReadFile(path + ".keys")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, err
	}
	for _, l := range strings.Fields(string(keys)) {
		args = append(args, "-o", "uat:smb2_seskey_list:"+l)
	}
	cmd := exec.CommandContext(ctx, tshark, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, nil, fmt.Errorf("tshark: %w\n%s", err, &stderr)
	}
	messages, problems, err = parse(bytes.NewReader(out))
	if err != nil {
		return nil, nil, fmt.Errorf("tshark's output: %w", err)
	}
	return messages, problems, nil
}

// parse reads PDML, tshark's XML.
func parse(r io.Reader) (messages []Message, problems []Problem, err error) {
	var (
		d      = xml.NewDecoder(r)
		frame  int
		sealed bool
		locked int      // the frame with a sealed message in which no message was seen yet
		m      *Message // the one that fields go to
		expert string   // the message of the expert information that is being read
	)
	endPDU := func() {
		if locked != 0 {
			problems = append(problems, Problem{locked, "a sealed message that the keys do not open"})
		}
		m, sealed, locked = nil, false, 0
	}
	for {
		tok, err := d.Token()
		if err == io.EOF {
			endPDU()
			return messages, problems, nil
		}
		if err != nil {
			return nil, nil, err
		}
		el, ok := tok.(xml.StartElement)
		if !ok {
			continue
		}
		attr := make(map[string]string, len(el.Attr))
		for _, a := range el.Attr {
			attr[a.Name.Local] = a.Value
		}
		name, show := attr["name"], attr["show"]
		switch {
		case el.Name.Local == "packet":
			endPDU()
			frame++
		case el.Name.Local == "proto":
			if name == "_ws.malformed" {
				problems = append(problems, Problem{frame, "malformed: " + attr["showname"]})
			}
			if name == "nbss" {
				endPDU()
			}
		case name == "smb2.header.transform.signature":
			sealed = true
		case name == "smb2.header.transform.enc_data":
			locked = frame
		case name == "smb2.header_len":
			locked = 0
			messages = append(messages, Message{Frame: frame, Sealed: sealed, Fields: make(map[string][]string)})
			m = &messages[len(messages)-1]
		case name == "_ws.expert.message":
			expert = show
		case name == "_ws.expert.severity":
			if s, ok := severities[show]; ok {
				problems = append(problems, Problem{frame, s + ": " + expert})
			}
		}
		if m == nil || el.Name.Local != "field" || name == "" {
			continue
		}
		m.Fields[name] = append(m.Fields[name], show)
		switch name {
		case "smb2.cmd":
			n, err := strconv.Atoi(show)
			if err != nil || n < 0 || n >= len(commands) {
				return nil, nil, fmt.Errorf("frame %d: command %q", frame, show)
			}
			m.Command = commands[n]
		case "smb2.flags.response":
			m.Response = show == "1"
		case "smb2.nt_status":
			n, err := strconv.ParseUint(strings.TrimPrefix(show, "0x"), 16, 32)
			if err != nil {
				return nil, nil, fmt.Errorf("frame %d: status %q", frame, show)
			}
			m.Status = uint32(n)
		}
	}
}
