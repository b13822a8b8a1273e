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

// Where the parts of a record end. Every record has a state and a fingerprint; the status comes with its CRLF.
const (
	stateEnd  = len(magic) + 1
	headEnd   = stateEnd + FingerprintSize
	statusEnd = headEnd + 5
)

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
	return held.State == Unknown && strings.HasPrefix(held.Record[headEnd:], observedMark)
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

// statuses has the status of each of StatusLines.
var statuses = newStatuses()

func newStatuses() map[string]int {
	of := map[string]int{}
	for status, line := range StatusLines {
		if line != "" {
			of[line] = status
		}
	}
	return of
}

// ErrForeign is the error for a stored value that is not a record: another program writes to the same keys.
var ErrForeign = errors.New("the stored value is not a record of this plugin")

// KeyOnly returns the Unkept record that is left of the record of an answer: without its header and its body.
func KeyOnly(record string) string {
	return magic + string(Unkept) + record[stateEnd:statusEnd]
}

// Decode reads a record. It returns ErrForeign for anything else.
func Decode(record string) (*Held, error) {
	held := &Held{Record: record}
	return held, Read(held)
}

// Read sets the fields of held from held.Record. It returns ErrForeign if that is not a record. Answers are read here, since most
// duplicates get one.
func Read(held *Held) error {
	record := held.Record
	if len(record) < statusEnd || record[:stateEnd] != DoneHead {
		return readOther(held)
	}
	status := statuses[record[headEnd:statusEnd]]
	rest := record[headEnd:]
	end := strings.Index(rest, "\r\n\r\n")
	if status == 0 || end < 0 {
		return ErrForeign
	}
	header, err := textproto.NewReader(bufio.NewReaderSize(strings.NewReader(record[statusEnd:]), end)).ReadMIMEHeader()
	if err != nil {
		return readUnreadable(held, status, rest[:end])
	}
	held.State = Done
	held.Fingerprint = record[stateEnd:headEnd]
	held.Answer = &Answer{Status: status, Header: http.Header(header), Body: rest[end+4:]}
	return nil
}

// readUnreadable is Read for an answer whose header cannot be read. It counts as Unkept if that is because a middleware below has put
// control characters into the header.
func readUnreadable(held *Held, status int, header string) error {
	if !strings.ContainsAny(header, Unreadable) {
		return ErrForeign
	}
	held.State = Unkept
	held.Fingerprint = held.Record[stateEnd:headEnd]
	held.Answer = &Answer{Status: status}
	return nil
}

// readOther is Read for all but answers.
func readOther(held *Held) error {
	record := held.Record
	if len(record) < headEnd || !strings.HasPrefix(record, magic) {
		return ErrForeign
	}
	held.State = State(record[len(magic)])
	held.Fingerprint = record[stateEnd:headEnd]
	switch held.State {
	case Running:
		held.Owner = record[headEnd:]
	case Unknown:
	case Unkept:
		if len(record) < statusEnd {
			return ErrForeign
		}
		status := statuses[record[headEnd:statusEnd]]
		if status == 0 {
			return ErrForeign
		}
		held.Answer = &Answer{Status: status}
	default:
		return ErrForeign
	}
	return nil
}

// Unreadable are the characters that make a header impossible to read back.
const Unreadable = "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\x7f"
