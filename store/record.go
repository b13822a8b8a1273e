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

// magic starts every record; a change of the layout changes it.
const magic = "idem1"

// headLen is the length of what all records have: magic, state, fingerprint.
const headLen = len(magic) + 1 + FingerprintSize

// Records are strings, laid out so that the standard library writes and reads an answer in few calls:
//
//	magic  R  fingerprint  owner
//	magic  U  fingerprint
//	magic  K  fingerprint  status CRLF
//	magic  D  fingerprint  status CRLF  header lines  CRLF  body
//
// The formats take the parts that differ, in this order; a finished answer, which every request makes, is put together
// without one, since that takes a tenth of the time. The header lines are in HTTP's own wire format.
const (
	RunningFormat = magic + "R%s%s"
	UnknownFormat = magic + "U%s"
	UnkeptFormat  = magic + "K%s%d\r\n"
	DoneHead      = magic + "D"
)

// StatusLines are the statuses from 100 to 999, each with its CRLF, at their places.
var StatusLines = newStatusLines()

func newStatusLines() []string {
	lines := make([]string, 1000)
	for status := 100; status < len(lines); status++ {
		lines[status] = strconv.Itoa(status) + "\r\n"
	}
	return lines
}

// ErrForeign is the error for a stored value that is not a record: somebody else writes under our keys.
var ErrForeign = errors.New("the stored value is not a record of this plugin")

// statusLen is the length of a status with its CRLF.
const statusLen = 5

// Bare is what stays of the record of an answer that is not kept.
func Bare(record string) string {
	return magic + string(Unkept) + record[len(magic)+1:headLen+statusLen]
}

// Decode reads a record. It returns ErrForeign for anything else.
func Decode(record string) (*Held, error) {
	held := &Held{Record: record}
	err := readRecord(held)
	if err != nil {
		return nil, err
	}
	return held, nil
}

// readRecord fills in what held.Record tells.
func readRecord(held *Held) error {
	record := held.Record
	if len(record) < headLen || record[:len(magic)] != magic {
		return ErrForeign
	}
	held.State = State(record[len(magic)])
	held.Fingerprint = record[len(magic)+1 : headLen]
	var err error
	switch held.State {
	case Done, Unkept:
		held.Answer, err = readAnswer(record[headLen:], held.State == Done)
	case Running:
		held.Owner = record[headLen:]
	case Unknown:
	default:
		err = ErrForeign
	}
	return err
}

// readAnswer reads the status in what follows the head of a record and, with whole, the header and the body.
func readAnswer(rest string, whole bool) (*Answer, error) {
	if len(rest) < statusLen || rest[3:statusLen] != "\r\n" {
		return nil, ErrForeign
	}
	status, err := strconv.Atoi(rest[:3])
	end := strings.Index(rest, "\r\n\r\n")
	if err != nil || status < 100 || (whole && end < 0) {
		return nil, ErrForeign
	}
	if !whole {
		return &Answer{Status: status}, nil
	}
	block := rest[statusLen : end+4]
	header, err := textproto.NewReader(bufio.NewReaderSize(strings.NewReader(block), len(block))).ReadMIMEHeader()
	if err != nil {
		return nil, ErrForeign
	}
	return &Answer{Status: status, Header: http.Header(header), Body: rest[end+4:]}, nil
}
