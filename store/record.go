package store

import (
	"bufio"
	"errors"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// FingerprintSize is the length in bytes of a fingerprint, a SHA-256.
const FingerprintSize = 32

// magic starts every record. It changes with the layout.
const magic = "idem1"

// headLen is the length of the head of every record: magic, state, fingerprint.
const headLen = len(magic) + 1 + FingerprintSize

// Records are strings, laid out so that the standard library writes and reads an answer in few calls:
//
//	magic  R  fingerprint  owner
//	magic  U  fingerprint  owner; of an observed request, observedMark comes before the owner
//	magic  K  fingerprint  status CRLF  owner
//	magic  D  fingerprint  status CRLF  header lines  CRLF  body
//
// The formats take the parts that differ, in this order. The record of an answer, which every request makes, is concatenated
// without a format, which takes a tenth of the time. The header lines are in HTTP's wire format. The owner makes records that ended
// alike differ, so that settling one cannot settle another. An Unkept record that KeyOnly has made has none.
const (
	RunningFormat = magic + "R%s%s"
	UnknownFormat = magic + "U%s%s"
	UnkeptFormat  = magic + "K%s%d\r\n%s"
	DoneHead      = magic + "D"

	ObservedFormat = magic + "U%s" + observedMark + "%s"
)

// observedMark tells the record of a request that was only observed, and then let through, from one with an unknown outcome.
const observedMark = "observed "

// WasObserved reports whether a record is that of a request that was only observed.
func WasObserved(held *Held) bool {
	return held.State == Unknown && strings.HasPrefix(held.Record[headLen:], observedMark)
}

// StatusLines has each status from 100 to 999 with its CRLF, indexed by the status.
var StatusLines = newStatusLines()

func newStatusLines() []string {
	lines := make([]string, 1000)
	for status := 100; status < len(lines); status++ {
		lines[status] = strconv.Itoa(status) + "\r\n"
	}
	return lines
}

// ErrForeign is the error for a stored value that is not a record: another program writes to the same keys.
var ErrForeign = errors.New("the stored value is not a record of this plugin")

// statusLen is the length of a status with its CRLF.
const statusLen = 5

// KeyOnly returns the Unkept record that is left of the record of an answer: without its header and its body.
func KeyOnly(record string) string {
	return magic + string(Unkept) + record[len(magic)+1:headLen+statusLen]
}

// Decode reads a record. It returns ErrForeign for anything else.
func Decode(record string) (*Held, error) {
	held := &Held{Record: record}
	return held, Read(held)
}

// Read sets the fields of held from held.Record. It returns ErrForeign if that is not a record.
func Read(held *Held) error {
	record := held.Record
	if len(record) < headLen || record[:len(magic)] != magic {
		return ErrForeign
	}
	held.State = State(record[len(magic)])
	held.Fingerprint = record[len(magic)+1 : headLen]
	var err error
	switch held.State {
	case Done, Unkept:
		held.Answer, err = readAnswer(held, record[headLen:])
	case Running:
		held.Owner = record[headLen:]
	case Unknown:
	default:
		err = ErrForeign
	}
	return err
}

// readAnswer reads rest, which follows the head of a record: the status and, if it is Done, the header and the body. An answer
// whose header cannot be read, because a middleware below has put control characters into it, counts as Unkept.
func readAnswer(held *Held, rest string) (*Answer, error) {
	if len(rest) < statusLen || rest[3:statusLen] != "\r\n" {
		return nil, ErrForeign
	}
	status, err := strconv.Atoi(rest[:3])
	if err != nil || status < 100 {
		return nil, ErrForeign
	}
	if held.State == Unkept {
		return &Answer{Status: status}, nil
	}
	end := strings.Index(rest, "\r\n\r\n")
	if end < 0 {
		return nil, ErrForeign
	}
	block := rest[statusLen : end+4]
	header, err := textproto.NewReader(bufio.NewReaderSize(strings.NewReader(block), len(block))).ReadMIMEHeader()
	switch {
	case err == nil:
	case !strings.ContainsAny(block, Unreadable):
		return nil, ErrForeign
	default:
		held.State = Unkept
		return &Answer{Status: status}, nil
	}
	return &Answer{Status: status, Header: http.Header(header), Body: rest[end+4:]}, nil
}

// Unreadable are the characters that make a header impossible to read back.
const Unreadable = "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\x7f"
