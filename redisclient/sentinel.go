package redisclient

import (
	"errors"
	"fmt"
	"log"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"
)

// Sentinel says under which name sentinels know the master, and how to log in to them.
type Sentinel struct {
	MasterName   string // empty: there are no sentinels
	Username     string // empty: the default user
	Password     string // empty: no login, unless PasswordFile is set
	PasswordFile string // read at every connect
}

// askPause is the time between two questions to one sentinel, and so the longest delay before a promotion is noticed.
const askPause = 100 * time.Millisecond

// oldAnswers is how often in a row the only sentinel must name the master of an older configuration before that counts.
const oldAnswers = 30

var (
	errNoMaster  = errors.New("no sentinel has named the master yet")
	errNotMaster = errors.New("another server is the master now")
	errDemoted   = errors.New("it is a replica now, and the sentinels have not named another master yet")
)

// master is what is known of the server that the sentinels name. Each sentinel is asked again and again. The newest
// configuration counts: a sentinel that was cut off may go on naming the old master.
type master struct {
	mu      sync.Mutex               // guards everything below
	changed *sync.Cond               // of mu: address has changed, or a dial has waited long enough
	address string                   // of the master; empty: not known yet
	epoch   int64                    // number of the configuration in which it became the master
	conns   map[*pooledConn]net.Conn // to address; some may be closed already
	answers []string                 // last answer of each sentinel; empty: it gave none
	errs    []error                  // why it gave none
	old     int                      // answers in a row of the only sentinel that were of an older configuration
	closed  bool
}

// poller asks one sentinel. Only one call of poll runs at a time.
type poller struct {
	master *master
	opts   Options // of the sentinel
	name   string  // of the master
	index  int     // of the sentinel in master.answers
	conn   redis.Conn
	timer  *time.Timer // guarded by master.mu
}

// newMaster starts to ask the sentinels of opts.
func newMaster(opts Options) *master {
	addresses := strings.Split(opts.Address, ",")
	name := opts.Sentinel.MasterName
	m := &master{conns: map[*pooledConn]net.Conn{}, answers: make([]string, len(addresses)), errs: make([]error, len(addresses))}
	m.changed = sync.NewCond(&m.mu)
	opts.Username = opts.Sentinel.Username
	opts.Password = opts.Sentinel.Password
	opts.PasswordFile = opts.Sentinel.PasswordFile
	opts.DB = 0
	for index, address := range addresses {
		opts.Address = address
		startPolling(&poller{master: m, opts: opts, name: name, index: index})
	}
	return m
}

func startPolling(p *poller) {
	p.master.mu.Lock()
	defer p.master.mu.Unlock()
	p.timer = time.AfterFunc(0, p.poll)
}

// close ends the questions. A client that still connects uses the last known master.
func (m *master) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
}

// poll asks once.
func (p *poller) poll() {
	defer p.reschedule()
	address, epoch, err := p.ask()
	if err != nil {
		p.disconnect()
		err = fmt.Errorf("sentinel %s: %w", p.opts.Address, err)
	}
	if !p.master.update(p.index, address, epoch, err) {
		p.disconnect() // behind the address of a load balancer, another sentinel may be next
	}
}

// reschedule ends a panic of poll, and calls poll again after askPause.
func (p *poller) reschedule() {
	if cause := recover(); cause != nil {
		log.Printf("level=error msg=\"asking a sentinel failed\" cause=%q", cause)
	}
	p.master.mu.Lock()
	defer p.master.mu.Unlock()
	if p.master.closed {
		p.disconnect()
	} else {
		p.timer.Reset(askPause)
	}
}

func (p *poller) disconnect() {
	if p.conn != nil {
		_ = p.conn.Close()
		p.conn = nil
	}
}

// ask returns the master's address and, if the address is new, the number of the configuration.
func (p *poller) ask() (string, int64, error) {
	if p.conn == nil {
		conn, err := dialConn(&p.opts, p.opts.Address)
		if err != nil {
			return "", 0, err
		}
		p.conn = conn
	}
	address, err := p.masterAddress()
	if err != nil || !p.master.movedFrom(address) {
		return address, 0, err
	}
	reply, err := p.conn.Do("SENTINEL", "MASTER", p.name)
	if err != nil {
		return "", 0, err
	}
	confirmed, err := p.masterAddress()
	if err != nil || confirmed != address { // the master is changing
		return "", 0, err
	}
	fields := elements(reply)
	for i := 0; i+1 < len(fields); i += 2 {
		if text(fields[i]) == "config-epoch" {
			epoch, err := strconv.ParseInt(text(fields[i+1]), 10, 64)
			return address, epoch, err
		}
	}
	return "", 0, unexpected("SENTINEL MASTER", reply)
}

func (p *poller) masterAddress() (string, error) {
	reply, err := p.conn.Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", p.name)
	if err != nil {
		return "", err
	}
	pair := elements(reply)
	if len(pair) != 2 {
		return "", fmt.Errorf("it knows no master %q", p.name)
	}
	return net.JoinHostPort(text(pair[0]), text(pair[1])), nil
}

// update stores what a sentinel said. Its address becomes the master's if no master is known, if its configuration is newer,
// or if most sentinels name it and none names another: then an administrator has reset the configuration numbers. If only
// one sentinel is configured, it has to say so oldAnswers times in a row. update returns false if it is to be asked over a new
// connection.
func (m *master) update(index int, address string, epoch int64, err error) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answers[index] = address
	m.errs[index] = err
	if address == m.address {
		m.old = 0
	}
	if address == "" || address == m.address {
		return true
	}
	agreed := 0
	for _, answer := range m.answers {
		switch answer {
		case address:
			agreed++
		case "":
		default:
			agreed -= len(m.answers)
		}
	}
	older := m.address != "" && epoch <= m.epoch
	if older && agreed <= len(m.answers)/2 {
		return true
	}
	if older && len(m.answers) == 1 {
		m.old++
		if m.old < oldAnswers {
			return false
		}
	}
	m.old = 0
	if m.address != "" {
		log.Printf("level=warn msg=\"another Redis is the master now\" master=%q before=%q", address, m.address)
	}
	m.address = address
	m.epoch = epoch
	// Senders that wait for a reply of the old master send again, to the new one.
	for _, conn := range m.conns {
		_ = conn.Close()
	}
	m.conns = map[*pooledConn]net.Conn{}
	m.changed.Broadcast()
	return true
}

// movedFrom reports whether the master's address is another one, or not known.
func (m *master) movedFrom(address string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.address != address
}

// current returns the master's address; empty if it is not known.
func (m *master) current() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.address
}

// await returns the master's address as soon as one other than except is known, or an error at the deadline.
func (m *master) await(except string, deadline time.Time) (string, error) {
	timer := time.AfterFunc(time.Until(deadline), m.wake)
	defer timer.Stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.address == except && time.Now().Before(deadline) {
		m.changed.Wait()
	}
	if m.address != except {
		return m.address, nil
	}
	if except != "" {
		return "", errDemoted
	}
	cause := errNoMaster
	for _, err := range m.errs {
		if err != nil {
			cause = fmt.Errorf("%w; %w", cause, err)
		}
	}
	return "", cause
}

// wake wakes all calls of await, so that they notice their deadline.
func (m *master) wake() {
	defer recovered("waiting for a master")
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changed.Broadcast()
}

// track registers conn, which is closed as soon as the master is at another address. It returns false if that is so already.
func (m *master) track(pc *pooledConn, conn net.Conn, address string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.address != address {
		return false
	}
	m.conns[pc] = conn
	return true
}

// connectToMaster connects pc to the master. A server that says it is a replica is not the master any more, whatever the
// sentinels say: then connectToMaster waits for the next one, within the time for connecting.
func connectToMaster(c *Client, pc *pooledConn) error {
	deadline := time.Now().Add(c.opts.DialTimeout)
	except := ""
	for {
		address, err := c.master.await(except, deadline)
		if err == nil {
			err = connectTo(c, pc, address)
		}
		if err != nil {
			return err
		}
		reply, _ := pc.conn.Do("ROLE") // nil if the user lacks the permission
		role := elements(reply)
		if len(role) == 0 || text(role[0]) == "master" {
			return nil
		}
		disconnect(pc)
		except = address
	}
}
